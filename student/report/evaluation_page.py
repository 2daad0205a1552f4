"""The page of an evaluation: accuracy, each class, which classes are taken for which, the worst answers as pictures."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from shards.text.figures import accuracy, count, noise
from student.learn.confusion import Confusion
from student.report.page import Tile, html, page, table

_MOST_IN_MATRIX = 20
_MOST_IN_TABLE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What an evaluation came to: what was evaluated, on what, top-1 and largest class in percent, the answers."""

    weights: str
    shards: str
    num_samples: int
    top1: float
    majority: float
    confusion: Confusion


def evaluation_page(evaluated: Evaluated, key: Callable[[int, int], str]) -> str:
    """The HTML page; `key` names the sample of a (shard, row)."""
    n, confusion = evaluated.num_samples, evaluated.confusion
    images = count(n, "image")
    lead = (
        f"{accuracy(evaluated.top1, n)} of {images} are named rightly, ± {noise(evaluated.top1, n):.1f} points; always "
        f"naming the largest class gives {accuracy(evaluated.majority, n)}."
    )
    items = [
        Tile(accuracy(evaluated.top1, n).removesuffix(" %"), "top-1, the answer that predict gives", "%"),
        Tile(f"± {noise(evaluated.top1, n):.1f}", f"noise of {images} (95 %)", "points"),
        Tile(accuracy(evaluated.majority, n).removesuffix(" %"), "always naming the largest class", "%"),
        Tile(accuracy(100 / len(confusion.names), n).removesuffix(" %"), "chance", "%"),
    ]
    body = html.paragraph(lead, "lead") + html.tiles(items)
    body += html.section("Each class", html.card(_classes(confusion)), "The worst first.")
    body += html.section(
        "Which class is taken for which", _matrix(confusion), "A row is a class, a column what it is named."
    )
    body += html.section(
        "The worst answers", _worst(confusion, key), "Wrong, and most certain of it; as the student sees them."
    )
    return page("Evaluation", f"{evaluated.weights} on {evaluated.shards}", body)


def _classes(confusion: Confusion) -> Markup:
    rows = []
    for c in confusion.present[:_MOST_IN_TABLE]:
        right, total = int(confusion.count_CC[c, c]), int(confusion.total_C[c])
        others = confusion.count_CC[c].copy()
        others[c] = 0
        taken = f"{confusion.names[int(others.argmax())]} ({others.max()})" if others.max() else "–"
        rows.append((confusion.names[c], right, total, f"{100 * right / total:.0f} %", taken))
    head = ("class", "right", "images", "accuracy", "mostly taken for")
    return table(head, rows, caption="Accuracy of each class", text_columns=(0, 4))


def _matrix(confusion: Confusion) -> Markup:
    """Counts of label and answer: of all classes, or of the 20 with the lowest accuracy."""
    shown = sorted(confusion.present[:_MOST_IN_MATRIX].tolist())
    names = [confusion.names[c] for c in shown]
    rows = [(confusion.names[c], *(int(confusion.count_CC[c, d]) or "·" for d in shown)) for c in shown]
    note = ""
    if len(confusion.present) > len(shown):
        note = f"The {count(len(shown), 'class')} with the lowest accuracy of {len(confusion.present)}."
    return html.card(table(("", *names), rows, caption="Confusion matrix"), note=note)


def _worst(confusion: Confusion, key: Callable[[int, int], str]) -> Markup:
    if not confusion.worst:
        return html.empty("No image was named wrongly.")
    pictures = []
    for wrong in confusion.worst:
        answer = f"{confusion.names[wrong.named]} ({100 * wrong.probability:.0f} %)"
        caption = f"{key(wrong.shard, wrong.row)}: is {confusion.names[wrong.label]}, named {answer}"
        pictures.append(html.picture(source=_data_uri(wrong.view_HWC), caption=caption))
    return html.grid(pictures)


def _data_uri(image_HWC: NDArray[np.uint8]) -> str:
    data = io.BytesIO()
    Image.fromarray(image_HWC).save(data, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
