"""A few pixels of what each part of a recipe renders: how far off is a machine that renders otherwise?

A digest says that something differs, not by how much. The pixels here are of fixed images, at numbers that RandAugment
draws; they are what docs/portability.md says of `reference`. `python -m benchmarks.reference_tables` prints the table.
"""

import base64
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from shards.rng import stream
from shards.views.behaviour import fixed_image
from shards.views.operations.operation import Draw, Operation
from shards.views.operations.table import OPERATIONS, apply_operations
from shards.views.view import render_views
from shards.views.view_recipe import ViewRecipe

NEAR_LEVELS = 0.5
"""Mean distance, in levels of 256, up to which two renderings of a part differ by rounding alone."""
_SIDE = 96
_FILL = (124, 116, 104)
_LEVELS = (0.4, 0.85, 0.95)
_VIEWS = range(3)
_PLAIN = ViewRecipe(size=_SIDE, crop="resize", flip=0.0, rand_augment="", erase_prob=0.0)
VARIANTS = {
    "decode": _PLAIN,
    "crop": replace(_PLAIN, crop="rrc"),
    "flip": replace(_PLAIN, flip=1.0),
    "erase": replace(_PLAIN, erase_prob=1.0),
}
_RADII = {"blur": (0.5, 1.1, 1.9)}


def levels_off(part: str) -> float:
    """Mean absolute distance of this machine's pixels of a part from the table's, levels; infinite for another part."""
    if part not in SKETCHES:
        return math.inf
    expected_N = np.frombuffer(base64.b85decode(SKETCHES[part]), np.uint8)
    return float(np.abs(sketch(part).astype(np.int16) - expected_N).mean())


def sketch(part: str) -> NDArray[np.uint8]:
    """What this machine renders of a part at 36 places of a few images, uint8 (N,)."""
    return np.concatenate([image_HWC[7::17, 5::17].ravel() for image_HWC in _rendered(part)])


def _rendered(part: str) -> Iterator[NDArray[np.uint8]]:
    if part in VARIANTS:
        for number, (size, sampling) in enumerate((((150, 200), "444"), ((200, 133), "420"), ((240, 180), "422"))):
            data = simplejpeg.encode_jpeg(fixed_image(*size), 90, "RGB", sampling)
            yield render_views(data, VARIANTS[part], str(number), [number], "sketch")[0]
        return
    image_HWC, rng = fixed_image(_SIDE, _SIDE), stream(0, "sketch", part)
    drawn = [OPERATIONS[part].drawn(Draw(level, True, _SIDE, rng)) for level in _LEVELS]
    for value in _RADII.get(part, drawn):
        yield apply_operations(image_HWC, [Operation(part, value)], _FILL)


SKETCHES: Mapping[str, str] = {
    "decode": (
        "3@JAyE;v5VDq6-mbjU4{$3hb*dMq(qM9*Gf$!C4XWS7Zv7cHGLG@(t&plHLQg2a%V#F`z)(>TG)RUqqbDA<W9$)zaXC&y+&zp+;)"
        "U3MoIjVn#0EiNmrJ4L8BU_d~7LqnBADzHR04P8DYk47+*KRR4HPFzG}l0Oj2ffFusHYJHh%!ydbh-xH!8_3KaF}Xb`#8S-IVad>S"
        "C(s?q93(CkL@6Fx&MR`vg@7wlEX_|YEJ{!$U}Ml#a?4eSC0s5@nN*{vU#O^IMwfL+nv<ue49-y`&qO@VM^n%_YtBW2&OaB<m@v(p"
        "M$VvM&zgA6r;g8`B_`W4B%4?$&}b^HfG6FXDzq%mL`2U@T+c>w&OD3GN2Sh0H_eqz%avx#nSITXmdu^5&7Mal=vgY=Zz`&ZD3+im"
        "+Pf&S"
    ),
    "crop": (
        "3M3;UCN?@JIZi1eWhgCxCqoq>d?+bjJ||vRCu43XVuL1e8O@?C$$Uh|lU&D>bIO{E$d@3_%r(llO31om$JltvwvoujBqNbKCuveC"
        "f@&$3e<sY6D0wR(I6)^TS}81SCme<-FrFqt4aY|<!CWpUPd~{>OvXoDCQBR3k2%DgF(rgb%ZXUahF>Lk8Y8wCE1x{fxl1F!UnRY6"
        "%)b~OhbJ(nL(zjr8M0s`k#og?C@3r_E*VS7C|fEeZ742#$S5x&SuZV8P|adtBx7<TXM@aRLdf1tCe~lb=5)rif-dck#^y#V4^zw*"
        "U@0PPDR6<u7oI5MO3Ex*DkEyiIfBScg(@<Z$45@jUSJ|^ZO&Ya&V7p`Uz*HgRVAKe$C7j>n0O|UlFNvpD~DOhvt}o)c*eAp$<dW2"
        "zoo~x"
    ),
    "flip": (
        "k;g)G$SqpNIzG=TB`!D&DL0qNbA88TVaaDi&t5DsToWjIoWz=f#E@viqD{%5Gc=(WEuEz(-iay6ZYbDQAnQ26%N@tlq%AIuD@}GM"
        "7gr`-Lcg&m$7ZlZHkCsvdqYEDKtM&PH!H3?WRgElTtqrtJ1~?#B#%Z7T|R0gd|1nfM$CyeC5aO*a}dgbbtlka$<R{F*gYu39x=Ha"
        "$jpE%Q*z9OTFxs(DIO#)6&=YOh$UQd%T;60RZt{gE-Xqc%}<l3r*%l0VMdo<sHjw<r!GjDg3do{&P7wuIXuosB+o<)&QXrfpLoru"
        "V9%OH&Y&>OoEOfRn<}(`C*5c&tyn0~G9;TNCflXXM2pTxa?U(l&qhSgN-WPruFam7%$<GBk!H-9P0N)x&6T?-vY;l~i71wDDyms3"
        "-A5+q"
    ),
    "erase": (
        "3@JAyE;v5VDq6-mbjU4{$3hb*dR#t(fhsUsTF!mPWS7Zv7cHFtJfuu|XenE5g2a%V#F`z))2fv-asNKPlskzj$)zaXC&y+~TSr}b"
        "W;ISqjVn#0EiNmrJ4L8BU_d~7LqnBADzHR04P8DYk47+*KRR4HPFzG}l0Oj2fr`;!HYJHh%!ydbh-xH!8_3KaF}Xb`#8S-IVad>S"
        "C(s?q93(CkL@6Fx&MR`vg@7wlEX_|YEJ{!$U}Ml#a?4eSC0s5@nN*{vU#O^IMwfL+nv<ue49-y`&qO@VM^n%_YtBW2&OaB<m@v(p"
        "M$VvM&zgA6r;g8`B_`W_YLw@GUT7+<fG6FXDzq%mM5h3BzHe7@&OD3GN2Sh0H_erFK@}*0VSUY!mdu^5&7Mal=vgY=Zz`&ZD3+im"
        "+Pf&S"
    ),
    "auto_contrast": (
        "4FEeZ{}WRH5_A78mH;ui|2r7}Z94!)UH?mf0B529Z^HmZB>;Ct|Bq+@V~hWUt^j$?|8Fq=v{L|obN{cF0DQUstK0yqI{>s@|FnPr"
        "x}pEE!vLA)|F=c|!Ds;9i~rTG0K3lr+VKGP4FEeZ{}WRH5_A78mH;ui|2r7}Z94!)UH?mf0B529Z^HmZB>;Ct|Bq+@V~hWUt^j$?"
        "|8Fq=v{L|obN{cF0DQUstK0yqI{>s@|FnPrx}pEE!vLA)|F=c|!Ds;9i~rTG0K3lr+VKGP4FEeZ{}WRH5_A78mH;ui|2r7}Z94!)"
        "UH?mf0B529Z^HmZB>;Ct|Bq+@V~hWUt^j$?|8Fq=v{L|obN{cF0DQUstK0yqI{>s@|FnPrx}pEE!vLA)|F=c|!Ds;9i~rTG0K3lr"
        "+VKGP"
    ),
    "equalize": (
        "0sti${{=+=1aSWro&Xxm|0M_iW+ebLQ~x`G0A8&BY1#lX4*+yC|CC_>S&;vQz5sUS|7jWj#6<vpaR0rY0D8>-xbgtFB>==z|HOd+"
        "&8+{x+5n;X|H(7|*I@wkkpJzz0M6$B@%{k+0sti${{=+=1aSWro&Xxm|0M_iW+ebLQ~x`G0A8&BY1#lX4*+yC|CC_>S&;vQz5sUS"
        "|7jWj#6<vpaR0rY0D8>-xbgtFB>==z|HOd+&8+{x+5n;X|H(7|*I@wkkpJzz0M6$B@%{k+0sti${{=+=1aSWro&Xxm|0M_iW+ebL"
        "Q~x`G0A8&BY1#lX4*+yC|CC_>S&;vQz5sUS|7jWj#6<vpaR0rY0D8>-xbgtFB>==z|HOd+&8+{x+5n;X|H(7|*I@wkkpJzz0M6$B"
        "@%{k+"
    ),
    "invert": (
        "`q#wmH|*fo?bJ8Y$JfrfH^lZglj+yF+&8q(*O|jNk+#>m@z;svH*wh4oy#|TzSoDcH<9f(P2kso)HhPc*Mzz^R;|}o>DNu%H%-si"
        "N5eNzw%2E=H%jF<K-kwK%Qq~(*G958C#Ba5`q#wmH|*fo?bJ8Y$JfrfH^lZglj+yF+&8q(*O|jNk+#>m@z;svH*wh4oy#|TzSoDc"
        "H<9f(P2kso)HhPc*Mzz^R;|}o>DNu%H%-siN5eNzw%2E=H%jF<K-kwK%Qq~(*G958C#Ba5`q#wmH|*fo?bJ8Y$JfrfH^lZglj+yF"
        "+&8q(*O|jNk+#>m@z;svH*wh4oy#|TzSoDcH<9f(P2kso)HhPc*Mzz^R;|}o>DNu%H%-siN5eNzw%2E=H%jF<K-kwK%Qq~(*G958"
        "C#Ba5"
    ),
    "rotate": (
        "d~|3HCQ%vKFeGIzFeN5@bZ7}EcNHj3Ajmo_C_6XEMMGIh5Xg)h)rco3Wi!ZYJ}6*H+G7?dpdvA)Ey$TUC~!r{f>0=o9mvEfRnjyl"
        "t3b%7OC_#X$enz2Xnb^NI~T@B$mCNf&wO-fd~|3ZC?PD!HaQnRM<`r;bZ8LBFdkP$D=2O_$XZ6yf_!vn4#-s;7IP^mU^d8qM96qi"
        "D5eZ3cN)lnC&-31D563rpHIl8d~|3T$dV?=pED@DK`6RT$klvwXcs8PBq-Q1$l82#Xnb^Nd~|3E$W{|APaP;ECddzbbZC5ZXcQ<}"
        "9Uo>U$UZRIF*ztM6v>w!C~_w#fiTE&Imm88C}kc#n<vS$G040+D2PKSjZDZ{C@APL$kjT?zC<XbO(>FlbZC5ZXnb^NL@3Bj$h=p`"
        "rF?W~"
    ),
    "rotate2": (
        "d~|3R%0MKEF)|S%Kgv&hbZ85ZI2kB9Cde`~C_q8SKTgPb4Gu^e$W|vPZ8gY`LKbdNC~XeOb{r^nDafEUD49gMiBZUt5GbM@%BCtP"
        "n>fh8MV6~mD8+nqXdlSYEGWe}-o<=$Xnb^Nd~|3E$X68OH6189C&&hTbZC5ZXcHTI9VK2T$UrckQ939t6Udt!D557QVKB&GIp0e}"
        "C|VpSw<gG|FvzMoD11XGW=+UwB`Dl4$jv#(+CwO%OenZ~bZC5ZXnb^NLMZM`$lO)Py?k_Nd~|3bC>$=xBRj@HNGLUYbZ8OCF&-5+"
        "D=0cS(r!k`RD5)356E>KC`l<OXE(@)M96|rD4z@{Y#PXRC&-*LD6K&yyiTmGd~|3R$hIWNp)n}QJ}Aaa$n<=4XcQ>AA}Fsf$nbo0"
        "Xnb^N"
    ),
    "posterize": (
        "03aX$zyJUs03g61ARr(>z#ss?U;rRMAizK%AYdTCU_c;103cuhz<?kiU?9MNKp<d1z+eEtpa39XAi$s?AYeeipg<s?03e_sz@Q)?"
        "pdi4YKp=oXz@PxYpdcW?Ai%&tAfQ0Nz(64200000fB*mh004jh00000fB*o1000000Du4h0001h0000000000fPer1004l100000"
        "fB*o1fB*mh0Dyo10001hfB*o1004jhfPer1fB=Ai004jhfPesifB*o10Dyo10Du61fB*o100000fB*mh004jh00000fB*o100000"
        "0Du4h0001h0000000000fPer1004l100000fB*o1fB*mh0Dyo10001hfB*o1004jhfPer1fB=Ai004jhfPesifB*o10Dyo10Du61"
        "fB*o1"
    ),
    "solarize": (
        "1t>cbHxnNy5-T??I4ChiH#-S8Y!)a+BR5MhC}uo2Zb>Lb4k&gSH;yMLVl+2{K`3}lH*OL)O&=(JD>qU&D0@XWR#GTd7AQ?4H%%}o"
        "M?5!BNhp|BH%b~eKqn|8G&d|kC`L^;Ct4^A1=qw9HxnP%64W=+$JfrfH^d1ylNQ&xBR90q*O|jNk+#>m4%dkqH*wh4oy#|TzSoDc"
        "H<1!IO&`~R)HhPc*Mzz^R;|}o7S~N9H%-siN5eNzw%2E=H%b~eK-kwK%Qq~(*G958C#Ba51=qywH|*fo?bJ8Y$JfrfH^d1ylj+yF"
        "+&8q(*O|jNk+#>m@z;svH*wh4oy#|TzSoDcH<9f(P2kso)HhPc*Mzz^R;|}o>DNu%H%-siN5eNzw%2E=H%jF<K-kwK%Qq~(*G958"
        "C#Ba5"
    ),
    "solarize_add": (
        "F;r(h$UjR|K3B+DWK>;o$Y(Xkm_k%?Psn#%RFY`OnsrohI#i-Y$c|G~j$p`xZB(Rr$eKRLvP)E|SIDhoRHt#sseV+cLR7L($g*5i"
        "xM;|)byS#w$hAhuzf)A)V93*LRJnP`*oIW}VuhG*$Z&jxZ-~f>m4%L?$e3ox$#aFHfXJwgg~OT1%cg~*YlYKy$c}`Czmdp;o`uz_"
        "$jfiYvV4Wxh{&y#h1jCVsjr2pbA_^i$g+)vxS7bWriGZZ$hCLKzl4R{k;v1Yg}JK8*tdoBZIGjS$a{y7dXvbNppcoZ$fI${)P9hz"
        "i^#K>kj|vY*0GSSc97nJ$c~SY%ACl9sgU5c$kuwuvWJl7lgO>0kmIe$sk)G<evq<@$g-G_xTMIhv5=U)$hCsVzmJgIoXFFukh!(U"
        "*us$X"
    ),
    "color": (
        "4ka--tvMhj7)-EDG%7D(v{^N;bQ>o+N3mcqD^pvwdqFHe7bsdovW+P!Pgb>vJuP8qw|zddr6ek0QMRNvEn;N2q)ah{AS;7QwWl*K"
        "ie9&;MKE`9x~@gEt}ZX4S-8JIFpX@x#Z@)904`4e{{S2;1pxT~KO-{>@&Ew)SqUj#0Qeg&AdUd=P*@#N04J~j^o}7Ti2(3+M;oXT"
        ">`egk%n~BH0Pemy9j^iCv0W4P03iPW@5m<^{{ZT~P!`-8<H7*&;1(GF0O|Ze75@q1{$mRN054Ji{{R~-0|5U3KqE5*_W%I@R|qL#"
        "0R9#(ACds{O<5dL04KKq`i>wXjsWy@NExmS@JRsp&k-TP0P?^&8?^xJvtAJY03ZJV^vfm}{{Zg4Q5578=feQ?<P;YF0PO!k6aN9_"
        "|6~XM"
    ),
    "contrast": (
        "01_+!>;MK502b^SC=wq!>?{E6ZvYZI3+zH25@#*!aX%6|01|uv?41!3VI%C0G!lPB>~R3>&IS^P7VO6;5`#MI!b=ju020m%?9Lq$"
        ")-CMHKN71^?9u@2;1Lr4BkcP$64yoS|5g(JOjTJ=dQekUPgQzWSXEbBdRa|+Wl&XIQ+i!jRbyFtWn5KTPgQ48dTmryVpn=<TUBRW"
        "dSy>~byHPoReE$-RcKp!b6-_+P*rtPdUaP-c3FCKTvcyhdUjEIcvMw?S9*P0Rd-!_eqdFF000;O{{R3000930695J){}=%Oa{vG>"
        "0RJ`w0B9QjcQODg004#n|FQr8VGIABBLImy|91fY^#A~s0RQY00FNvG<U;`D008v>|Mdg_{~G`AG62O&|N8*{{{R603;+Kk0RKAw"
        "|55<|"
    ),
    "brightness": (
        "1~yO_{~0Pa7&`wwOg2JY|4<D7k{vc*FaKsiHi}XIm18zt6E>hD|G_mjg+~9fST>_*|CJd3@+vl~I{)iTHm6<x<!?6S9X9eW|MEdL"
        "`cePxV>Zro|MnyQ|1~!MM*sg<Hv4G*|9Uq60SOHRF9Zh(1PU(-4G9YnFAV}O83hRt2rm%}2^S7884(E(0|^@jFChsD7Yr{R4+$I+"
        "FBt?cDF+E13NI)P2^<hFCld)L1qmq#FDVNND-JIy5eXv{FDeEvEC~rS3@<Sc2`dsWG8G9q00jsF9RdUe0tOuh2n7cU9S8v(4+8}X"
        "1sw_o1r7)u4+;ee0tFER9TWux4hJ0)2?Y@g9S;H>83Y9q1|1m)1rZ7z7z+g$0|glc9T^4%8VDU33I!Gn9U2228wCX)2OS;>1sV$-"
        "9}NW~"
    ),
    "sharpness": (
        "1SmZc$O|7R3o6JgHz+Yh$UX?jaup~;BgjiIC~7;%bVw*g4k&gR$dM)}U^K{yK`3}k$ZrzJxF0BZD#)`pD0W52u~I0m6)3SI$geOc"
        "wL8eINGOn2$g~;Axh5#uG|19HD6&k**I6k11t>KU$RZvnAS=i%I4Ceg$TA7YUKS`!BFITEC|f+pU`Z%L4JdRP$b}~;WHZQhKqz-j"
        "$ZHYEqaG-VE6ATXD1$`Emr*F37AUhK$ha>kygbOVNhqgP$hI2D$|oq_Gsx9ID8)_4*jgy!1t>HT$Rr*pAuGr&I4Ceg$TA7YT^1-!"
        "BFIQDC|W$oUP&lJ4JdOO$b=^-WHZQfKqz-j$ZHYEp&lrUE6ANVD1=1Fl~E|07AUkL$hj{ly*$XWNhqjQ$hI2D%O@z{Gsx9ID9266"
        "*jgyy"
    ),
    "shear_x": (
        "1t=8~$Rr*pD=Wx6I4CSd$QujDN*5?xB*-!`C^$aIJxVBN5Gaiu$ZRSoWH-ozLnwbx$aNRUh9oGDG034kD~w7dv3zuB9Vo{tzRxz$"
        "l|v}IP{^o!bZ8?R(=W)#JSf6R$jDYG@qBb>1}GX5$VDG07%a#tIVc%L$Sw}ZQX42<C&+CyAW=b}MSOH<6@+3U7iKQVh&w22NXUhJ"
        "bZ8tXswv2pHYkfi$a_yHi+prwB*?KbD5XBgmrE$PSIE75bZ9Fm#yH5!MG?_bYRP<bXnb^N2Ph^J$U`6~7A?ppIw%xI$TAMdR~jf>"
        "C&*|tC0ju%IDB+y7Ryv3D1$G^ay%%0Nyu@0bZ8zZdn(ALHz<ij$f8jwo_us@CdjigD5gKiuuLeoS;)YAbZ9PN%{vg~N66t+DBOH>"
        "Xnb^N"
    ),
    "shear_y": (
        "1Sm2R$QvLiJT1sdIjcBFC`1X!Ru?EiB*<Yf5@bFkZ%oKr4k%$8$X_QYe>F>ML&$MZD2Wotp&lrOEZ(#_&WA@RxKqfL6)3GE$ha|`"
        "ojxeiO31rdDApRt*C;61d~|4hbZC5ZXnb^N1t>Za$Tc9yVJ|3UJ;-BACUpwPQWq#SB`88N$bUg7WKX+c4k&CK-ia#6d^aeFM96wl"
        "(xVZ`q#&M<E+~&Y$h%1>u~#V07AUwQAI34rwLmD@PRP!DbZ8sM;Cyswd~|4hbZC5ZXnb^N1t>WW$O?RPXnb^Nd~|4hbZ804P829d"
        "ASgjA$UQeGBz$ye3@Cyb$YvwRRWK+@JIFUjrb!XVbR8&+C=qxx$X-AwZ%W;F7AT(}$h9p|tT!loM97CvD1{ox+9fF7G0)RH$iGM^"
        "%T&mi"
    ),
    "translate_x": (
        "637o9C=@HmG&m?NMaVLIbZ8bRK_kdSFeq(2$YDt+MSOH<8px3+C|WegctI#?O~`M2bZ8$ah%3mdI4E{S$e~gwr+jp1BgnomD7rkz"
        "u}LVDR>-Y<bZ93i;55kKK`6FO$k19S@O*S=d~|4hbZ7%8BoN3;94IO&$SHhuXnb^N2gpDaC`=*9J}oF>d~|4hbZ84Gbr{HeB`Ah6"
        "$Y*?XXnb^N5Xg%hD5WXLtu`o-d~|4hbZ8VPs3FL~EhvsU$e4U|Xnb^N7|7ElDC9E8-aaV!d~|4hbZC5ZXbd497%mtk$RK=lXnb^N"
        "d~|3K&RiYAWhp2_d~|4hbZC5ZXcQr9Audub$aZ{mXnb^Nd~|3S&Z8y4oH8hVd~|4hbZC5ZXdNM|DK4Wn$gzBMXnb^Nd~|3b&gm|}"
        "y*en+"
    ),
    "translate_y": (
        "d~|4hbZC5ZXnb^Nd~|4hbZ7-AKoZCY9w;6v$SOD}GeyWX2*`65C^#d?Q!gl3JIG>5C`An@d>P1(Cn#++$b~>CcudG=63C+-D1s`;"
        "r8p>jMaZC0D6JMKvm?l|FDSY@$g4>xl~%~Qd~|4hbZC5ZXnb^Nd~|4hbZC5ZXnb^Nd~|4hbZC5ZXnb^N1Sky<$Uhz^EGx(}Hz*K8"
        "$T11XJryWOA;>H*C}TXxQ%EQ&4Jcn4$ap3wdNRm?KqyO1$bJyWp&lrFE6B4qD1Sr9uTdz2d~|4hbZC5ZXnb^Nd~|4hbZC5ZXnb^N"
        "d~|4hbZC5ZXnb^N0w@j;$SfTw6)MOfH7E^3$Sw!SQxhm3A;@1YC?z_`R7NN`3@B6>$WbIHM>5E9KPY5N$aE0Ma~&vcDady<D2_wO"
        "j8G__"
    ),
    "grey": (
        "ARr)peSIS%BZr5FE-o&Sk&%RigeE2?h=_<WF)@^slr=RqDJdz9jg2lYE|ip%IXO9*nVFA|k1sDTmX?+_Ha4A|okK%IGBPrhl$1L="
        "JDZ!EKR-XDq@<IRlRP{;ot>RPKtQFXrA|&xARr)peSIS%BZr5FE-o&Sk&%RigeE2?h=_<WF)@^slr=RqDJdz9jg2lYE|ip%IXO9*"
        "nVFA|k1sDTmX?+_Ha4A|okK%IGBPrhl$1L=JDZ!EKR-XDq@<IRlRP{;ot>RPKtQFXrA|&xARr)peSIS%BZr5FE-o&Sk&%RigeE2?"
        "h=_<WF)@^slr=RqDJdz9jg2lYE|ip%IXO9*nVFA|k1sDTmX?+_Ha4A|okK%IGBPrhl$1L=JDZ!EKR-XDq@<IRlRP{;ot>RPKtQFX"
        "rA|&x"
    ),
    "blur": (
        "1t>QX$R8glA1lZ%I4Ckj$TJDZWELn&BgjfHC|W$oVo4}N4k&mU$ciT@W;DooK`3`k$Z8VEqaP@VE6AcaD1t@EnNldB7AUeK$h9yi"
        "zC6gXNhqXN$hjKG$0sP^G|1IKD8o(2*;**#1t>5Q$S@x$Dl5n=I4Ceh$Sn!TQx+&uBgjfHC{R4eS4k*F4k&gS$bBa$Y&6JkK`3=i"
        "$ZHbFmLDjSE6A2OD2+wPjZ!F<7AUkM$h<HpzC6gaNhq~e$haEF(<dn4G|1OMDAY~J*jgyl1t=~O$T1%%D=Ww>I4CYf$SeuSP8KLp"
        "BgjiIC{jGgR7ogH4k&aQ$ag0waWu$rK`3-h$ZrzJlpiRQE6A2OD3C?Sky0p@7AdqN$GI>mx;)3UNh!Bh$F~~D)h8(3G|1RNDA-NN"
        "*jgym"
    ),
}
"""Part → what `sketch` gives, base 85."""
