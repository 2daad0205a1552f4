"""`check-machine`: compare the pixels that this machine renders with those of other machines."""

import click

from shards.commands.flags import CACHE, stop_with
from shards.console import result, say
from teacher_cache.store.header import local_header


@click.command("check-machine")
@click.option(
    "--cache", type=CACHE, help="Compare with the machine that made this cache; default: with the built-in recipes."
)
def check_machine(cache: str | None) -> None:
    """Render fixed images and compare their checksums, in seconds. Exit code 1 if this machine renders other pixels."""
    differing = _with_cache(cache) if cache else _with_reference()
    for name, parts in differing.items():
        result(f"{name}: {'renders differently: ' + ', '.join(parts) if parts else 'the same pixels'}")
    if any(differing.values()):
        if not cache:
            say("this machine renders other pixels than others do: make the cache where the students are trained")
        raise stop_with(1)


def _with_reference() -> dict[str, tuple[str, ...]]:
    from shards.views.reference import differing_here

    return differing_here()


def _with_cache(url: str) -> dict[str, tuple[str, ...]]:
    local_header(url)
    from shards.views.behaviour import has_parts
    from shards.views.reference import parts_differing_here, suspects_here
    from teacher_cache.store.cache import TeacherCache
    from teacher_cache.store.libraries import rendering_remedy

    with TeacherCache.open(url) as cache:
        spec = cache.spec
        parts = parts_differing_here(spec.behaviour, spec.recipe)
        if not parts and not has_parts(spec.behaviour):
            # A digest of version 0.1 has one value of each operation: too few to see a rounding.
            parts = suspects_here(spec.recipe)
        if parts:
            say(rendering_remedy(cache.header.made_with))
        return {f"{url}, recipe {spec.recipe.name}": parts}
