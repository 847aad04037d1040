"""Made-up furniture: six classes in four styles, each with continuous parameters, as closed meshes. No torch.

An object faces +x and stands on z = 0, metres. A style is a way of building: `slab` of thick boards, `post` of thin
posts and boards, `round` of drums and balls, `block` of solid bodies. It shows in the shape of every class and in
nothing else, so that objects of one scene can tell each other which it is. Parameters change sizes and thickness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stageline.families.sparse_structure.data.solids import ball, box, drum, hole, join
from stageline.families.sparse_structure.data.voxels import Mesh

STYLES = ("slab", "post", "round", "block")
NUM_PARAMETERS = 6
SPREAD = 0.16
"""Largest change of a size by its parameter, as a share."""


@dataclass(frozen=True)
class Sizes:
    """What the parameters of an object say: factors around 1.

    depth, width, height: along x, y, z.  thick: of boards and posts.  level: heights at which seats and boards lie.
    inner: extent of backs, shades, feet and niches.
    """

    depth: float
    width: float
    height: float
    thick: float
    level: float
    inner: float

    @classmethod
    def of(cls, parameters: Sequence[float]) -> Sizes:
        """parameters: six numbers in [0, 1)."""
        return cls(*(1 + SPREAD * (2 * number - 1) for number in parameters))


def _legs(depth: float, width: float, height: float, thick: float) -> list[Mesh]:
    """Four posts below a board of depth x width."""
    x, y = depth / 2 - thick, width / 2 - thick
    return [
        box((sx - (sx < 0) * thick, sy - (sy < 0) * thick, 0), (sx + (sx > 0) * thick, sy + (sy > 0) * thick, height))
        for sx in (-x, x)
        for sy in (-y, y)
    ]


def _chair(style: str, s: Sizes) -> list[Mesh]:
    d, w, t = 0.5 * s.depth, 0.5 * s.width, s.thick
    if style == "slab":
        seat, top = 0.42 * s.height * s.level, 1.0 * s.height * s.inner
        board = 0.1 * t
        sides = [box((-d / 2, y, 0), (d / 2, y + board, seat)) for y in (-w / 2, w / 2 - board)]
        return [
            *sides,
            box((-d / 2, -w / 2, seat - board), (d / 2, w / 2, seat)),
            box((-d / 2, -w / 2, 0), (board - d / 2, w / 2, top)),
        ]
    if style == "post":
        seat, top, post = 0.5 * s.height * s.level, 1.05 * s.height, 0.075 * t
        backs = [box((-d / 2, y, seat), (post - d / 2, y + post, top)) for y in (-w / 2, w / 2 - post)]
        rails = [
            box((-d / 2, -w / 2, z - 1.2 * post), (post - d / 2, w / 2, z))
            for z in (top, seat + (0.5 * s.inner) * (top - seat) + post)
        ]
        return [*_legs(d, w, seat, post), box((-d / 2, -w / 2, seat - post), (d / 2, w / 2, seat)), *backs, *rails]
    if style == "round":
        seat, board = 0.45 * s.height * s.level, 0.09 * t
        return [
            drum((0, 0, board / 2), (0.36 * d * s.inner, 0.36 * w * s.inner), board),
            drum((0, 0, seat / 2), (0.12 * t * d, 0.12 * t * w), seat),
            drum((0, 0, seat - board / 2), (d / 2, w / 2), board),
            drum(
                (board / 2 - d / 2, 0, seat + 0.2 * s.height * s.inner),
                (w / 2 * s.inner, 0.24 * s.height * s.inner),
                board,
                axis=0,
            ),
        ]
    seat, top, back = 0.38 * s.height * s.level, 0.68 * s.height, 0.16 * t
    d, w = 1.3 * d, 1.4 * w
    arms = [box((-d / 2, y, 0), (d / 2, y + back, 0.53 * s.height * s.inner)) for y in (-w / 2, w / 2 - back)]
    return [box((-d / 2, -w / 2, 0), (d / 2, w / 2, seat)), box((-d / 2, -w / 2, 0), (back - d / 2, w / 2, top)), *arms]


def _table(style: str, s: Sizes) -> list[Mesh]:
    d, w, t = 0.8 * s.depth, 1.2 * s.width, s.thick
    if style == "slab":
        h, board = 0.72 * s.height, 0.12 * t
        x, inset = 0.42 * d * s.inner, 0.12 * (s.level - 0.8) * w
        sides = [box((-x, y, 0), (x, y + board, h)) for y in (inset - w / 2, w / 2 - board - inset)]
        return [*sides, box((-d / 2, -w / 2, h - board), (d / 2, w / 2, h))]
    if style == "post":
        h, board, post = 0.85 * s.height, 0.08 * s.level, 0.09 * t
        return [*_legs(0.83 * d * s.inner, w, h, post), box((-d / 2, -w / 2, h - board), (d / 2, w / 2, h))]
    if style == "round":
        h, board, r = 0.75 * s.height, 0.1 * t, 0.55 * s.width
        return [
            drum((0, 0, board / 2), (0.6 * r * s.inner, 0.6 * r * s.inner), board),
            drum((0, 0, h / 2), (0.25 * r * s.level, 0.25 * r * s.level), h),
            drum((0, 0, h - board / 2), (r * s.depth, r), board),
        ]
    h, board = 0.5 * s.height, 0.14 * t
    return [
        box((-0.4 * d * s.inner, -0.4 * w * s.level, 0), (0.4 * d * s.inner, 0.4 * w * s.level, h)),
        box((-d / 2, -w / 2, h - board), (d / 2, w / 2, h)),
    ]


def _lamp(style: str, s: Sizes) -> list[Mesh]:
    h, t = 1.4 * s.height, s.thick
    a = 0.4 * s.width
    if style == "slab":
        board = 0.14 * t
        return [
            box((-a / 2 * s.depth, -a / 2, 0), (a / 2 * s.depth, a / 2, 0.12 * h * s.level)),
            box((-board / 2, -0.4 * a * s.inner, 0), (board / 2, 0.4 * a * s.inner, h)),
            box((-0.3 * s.depth, -0.5 * a, h - board), (0.3 * s.depth, 0.5 * a, h)),
        ]
    if style == "post":
        post, foot = 0.1 * t, 0.3 * h * s.level
        return [
            *_legs(0.6 * s.depth, 1.5 * a, foot, post),
            box((-0.3 * s.depth, -0.75 * a, foot - post), (0.3 * s.depth, 0.75 * a, foot)),
            box((-post / 2, -post / 2, foot), (post / 2, post / 2, h)),
            box((-0.22 * s.depth, -0.55 * a * s.inner, 0.8 * h), (0.22 * s.depth, 0.55 * a * s.inner, 0.88 * h)),
        ]
    if style == "round":
        r = 0.75 * a
        return [
            drum((0, 0, 0.04 * h * s.level), (0.8 * r * s.inner, 0.8 * r * s.depth), 0.08 * h * s.level),
            drum((0, 0, 0.35 * h), (0.06 * t, 0.06 * t), 0.7 * h),
            ball((0, 0, 0.62 * h + r), (r, r, r)),
        ]
    return [
        box((-0.3 * s.depth, -0.75 * a, 0), (0.3 * s.depth, 0.75 * a, 0.45 * h * s.level)),
        box((-0.2 * s.depth, -0.5 * a * s.inner, 0.3 * h), (0.2 * s.depth, 0.5 * a * s.inner, 0.72 * h)),
    ]


def _mug(style: str, s: Sizes) -> list[Mesh]:
    r, h, t = 0.12 * s.width, 0.28 * s.height, 0.03 * s.thick
    if style == "slab":
        body = [box((-r, -r, 0), (r, r, h)), hole(box((t - r, t - r, t), (r - t, r - t, h)))]
        return [*body, box((r, -t, 0.5 * h * s.inner - 0.15 * h), (r + 0.08 * s.depth, t, 0.75 * h * s.level))]
    if style == "post":
        r, h = 0.75 * r, 1.3 * h
        body = [drum((0, 0, h / 2), (r, r), h), hole(drum((0, 0, h / 2 + t / 2), (r - 0.8 * t, r - 0.8 * t), h - t))]
        x, low, high = r + 0.09 * s.depth, 0.2 * h * s.level, 0.72 * h * s.inner
        bars = [box((0.9 * r, -t / 2, z), (x, t / 2, z + t)) for z in (low, high)]
        return [*body, *bars, box((x - t, -t / 2, low), (x, t / 2, high + t))]
    if style == "round":
        r = 1.25 * r
        bowl = [ball((0, 0, r), (r, r, r)), hole(ball((0, 0, 1.25 * r), (0.72 * r, 0.72 * r, 0.7 * r)))]
        return [*bowl, drum((1.05 * r * s.inner, 0, r * s.level), (0.5 * r, 0.5 * r * s.depth), 1.3 * t, axis=1)]
    r, h = 1.2 * r, 0.7 * h
    body = [
        box((-r, -1.2 * r, 0), (r, 1.2 * r, h)),
        hole(box((-0.5 * r * s.inner, -0.6 * r, 0.5 * h * s.level), (0.5 * r * s.inner, 0.6 * r, h))),
    ]
    return [*body, box((r, -0.6 * r * s.thick, 0.2 * h), (r + 0.05 * s.depth, 0.6 * r * s.thick, 0.85 * h))]


def _shelf(style: str, s: Sizes) -> list[Mesh]:
    d, w, h, t = 0.45 * s.depth, 0.9 * s.width, 1.3 * s.height, s.thick
    if style == "slab":
        board = 0.1 * t
        sides = [box((-d / 2, y, 0), (d / 2, y + board, h)) for y in (-w / 2, w / 2 - board)]
        boards = [
            box((-d / 2, -w / 2, z), (d / 2, w / 2, z + board)) for z in (0, h * s.level / 2 - board / 2, h - board)
        ]
        return [*sides, *boards, box((-d / 2, -w / 2, 0), (board * s.inner - d / 2, w / 2, h))]
    if style == "post":
        board, post, w = 0.07 * t, 0.09 * t, 0.7 * w
        gaps = (0.12 * s.level, 0.4 * s.level, 0.66 * s.inner, 0.96)
        return [*_legs(d, w, h, post), *(box((-d / 2, -w / 2, g * h), (d / 2, w / 2, g * h + board)) for g in gaps)]
    if style == "round":
        r, board, h = 0.36 * s.width, 0.1 * t, 0.9 * h
        discs = [
            drum((0, 0, z), (r, r), board) for z in (board / 2, 0.35 * h * s.level, 0.7 * h * s.inner, h - board / 2)
        ]
        return [*discs, drum((0, 0, h / 2), (0.25 * r * s.depth, 0.25 * r), h)]
    d, w, h = 1.2 * d, 1.1 * w, 0.8 * h
    body = box((-d / 2, -w / 2, 0), (d / 2, w / 2, h))
    niches = [
        hole(box((0.1 * d * t, -0.36 * w * s.inner, z * h), (d / 2, 0.36 * w * s.inner, (z + 0.28 * s.level) * h)))
        for z in (0.14, 0.56)
    ]
    return [body, *niches]


def _sofa(style: str, s: Sizes) -> list[Mesh]:
    d, w, h, t = 0.8 * s.depth, 1.7 * s.width, 0.75 * s.height, s.thick
    if style == "slab":
        board = 0.14 * t
        z = 0.35 * h * s.level
        sides = [box((-d / 2, y, 0), (d / 2, y + board, 0.75 * h * s.inner)) for y in (-w / 2, w / 2 - board)]
        seat = box((-d / 2, -w / 2, z), (d / 2, w / 2, z + board))
        return [*sides, seat, box((-d / 2, -w / 2, z), (board - d / 2, w / 2, 0.95 * h))]
    if style == "post":
        post, w, h = 0.12 * t, 0.8 * w, 1.25 * h
        z, places = 0.48 * h * s.level, (-w / 2, -w / 2 + 0.45 * w * s.inner, w / 2 - post)
        backs = [box((-d / 2, y, z), (post - d / 2, y + post, h)) for y in places]
        seat = box((-d / 2, -w / 2, z - post), (d / 2, w / 2, z))
        return [*_legs(d, w, z, post), seat, *backs, box((-d / 2, -w / 2, h - post), (post - d / 2, w / 2, h))]
    if style == "round":
        r = 0.2 * s.height * s.inner
        arms = [drum((0, y, 1.6 * r), (r, r), d, axis=0) for y in (r - w / 2, w / 2 - r)]
        back = drum((r - d / 2, 0, 2.4 * r), (1.2 * r, r), w - 2 * r, axis=1)
        return [drum((0, 0, 0.12 * s.level), (d / 2, w / 2), 0.24 * s.level), *arms, back]
    d, w, h, deep = 1.4 * d, 0.85 * w, 1.2 * h, 0.28 * t
    return [
        box((-d / 2, -w / 2, 0), (d / 2, w / 2, 0.45 * h * s.level)),
        box((-d / 2, -w / 2, 0), (deep - d / 2, w / 2, h)),
        box((-d / 2, -w / 2, 0), (d / 2, 1.6 * deep - w / 2, 0.7 * h * s.inner)),
    ]


CLASSES: Mapping[str, Callable[[str, Sizes], list[Mesh]]] = {
    "chair": _chair,
    "table": _table,
    "lamp": _lamp,
    "mug": _mug,
    "shelf": _shelf,
    "sofa": _sofa,
}


def make_furniture(kind: str, style: str, parameters: Sequence[float]) -> Mesh:
    """A piece of furniture, standing on z = 0 and facing +x, metres.

    kind: of `CLASSES`.  style: of `STYLES`.  parameters: six numbers in [0, 1), in the order of `Sizes`.
    """
    mesh = join(CLASSES[kind](style, Sizes.of(parameters)))
    return Mesh(mesh.vertices - [0, 0, mesh.vertices[:, 2].min()], mesh.faces)
