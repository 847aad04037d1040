"""Where the checkpoints of a run come from: a graph of parents and children, as SVG and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stageline.verbs.report.html import Child, Markup, count, fold, table, tag

NODE_WIDTH, NODE_HEIGHT, COLUMN, ROW, MARGIN = 236, 84, 470, 112, 8


@dataclass(frozen=True)
class Node:
    """One checkpoint. key: its digest.  title, lines: what stands in its box.  outside: made by another run."""

    key: str
    title: str
    lines: tuple[str, ...]
    outside: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one section of a parent's tensors."""

    section: str
    outcome: str
    reason: str


@dataclass(frozen=True)
class Edge:
    """A child was started from a parent, in a role, with weights `raw` or `ema`."""

    parent: str
    child: str
    role: str
    weights: str
    outcomes: tuple[Outcome, ...]


def lineage_graph(nodes: Sequence[Node], edges: Sequence[Edge]) -> Markup:
    """The graph, parents on the left, and every edge's sections as a table. nodes: at least one."""
    column = columns(nodes, edges)
    place: dict[str, tuple[int, int]] = {}
    used: dict[int, int] = {}
    for node in nodes:
        at = column[node.key]
        place[node.key] = (MARGIN + at * COLUMN, MARGIN + used.get(at, 0) * ROW)
        used[at] = used.get(at, 0) + 1
    width = 2 * MARGIN + max(column.values()) * COLUMN + NODE_WIDTH
    height = 2 * MARGIN + (max(used.values()) - 1) * ROW + NODE_HEIGHT
    drawn: list[Child] = [draw_edge(edge, place) for edge in edges]
    drawn += [draw_node(node, place[node.key]) for node in nodes]
    names = {node.key: node.title for node in nodes}
    links = "; ".join(f"{names[e.child]} started from {names[e.parent]} as {e.role}" for e in edges)
    said = f"{count(len(nodes), 'checkpoint')}. {links or 'None of them has a parent.'}"
    picture = tag(
        "svg",
        tag("title", "Checkpoint lineage"),
        drawn,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=said,
        style=f"max-width:{width}px",
        class_="chart",
    )
    return tag(
        "figure",
        tag(
            "figcaption",
            "Which checkpoint started from which",
            tag("span", " (dashed: of another run)", class_="quiet"),
        ),
        tag("div", picture, class_="scroll lineage"),
        inheritance_table(edges, names),
    )


def columns(nodes: Sequence[Node], edges: Sequence[Edge]) -> dict[str, int]:
    """The length of the longest chain of parents before each node; a loop, which no real lineage has, is cut."""
    column = {node.key: 0 for node in nodes}
    for _ in nodes:
        for edge in edges:
            column[edge.child] = min(max(column[edge.child], column[edge.parent] + 1), len(nodes) - 1)
    return column


def draw_node(node: Node, at: tuple[int, int]) -> Markup:
    """A box with the checkpoint's stage and step, digest and content."""
    x, y = at
    look = "node outside" if node.outside else "node"
    lines = [tag("text", line, x=x + 14, y=y + 44 + 17 * i, class_="small") for i, line in enumerate(node.lines[:2])]
    return tag(
        "g",
        tag("title", ", ".join((node.title, *node.lines))),
        tag("rect", x=x, y=y, width=NODE_WIDTH, height=NODE_HEIGHT, rx=8, class_=look),
        tag("text", node.title, x=x + 14, y=y + 24, class_="strong"),
        lines,
    )


def draw_edge(edge: Edge, place: Mapping[str, tuple[int, int]]) -> Markup:
    """A line from parent to child; over it the role, under it what became of each section."""
    (x0, y0), (x1, y1) = place[edge.parent], place[edge.child]
    start, end = x0 + NODE_WIDTH, x1 - 7
    a, b = y0 + NODE_HEIGHT // 2, y1 + NODE_HEIGHT // 2
    middle = (start + end) // 2
    label = tag("text", f"{edge.role} ({edge.weights})", x=middle, y=(a + b) // 2 - 8, class_="center small")
    by_outcome: dict[str, list[str]] = {}
    for item in edge.outcomes:
        by_outcome.setdefault(item.outcome, []).append(item.section)
    lines = [f"{outcome}: {', '.join(sections)}" for outcome, sections in by_outcome.items()]
    below = [
        tag("text", line, x=middle, y=(a + b) // 2 + 16 + 15 * i, class_="center small")
        for i, line in enumerate(lines[:3])
    ]
    return tag(
        "g",
        tag("path", d=f"M{start},{a} C{middle},{a} {middle},{b} {end},{b}", class_="edge"),
        tag("path", d=f"M{end},{b - 5} l8,5 l-8,5 z", class_="arrow"),
        label,
        below,
    )


def inheritance_table(edges: Sequence[Edge], names: Mapping[str, str]) -> Markup | None:
    """Every section of every parent, what became of it and why."""
    rows: list[list[Child]] = [
        [names[e.child], names[e.parent], e.role, e.weights, item.section, item.outcome, item.reason]
        for e in edges
        for item in e.outcomes or (Outcome("—", "—", "the metadata name no section"),)
    ]
    if not rows:
        return None
    head = ["checkpoint", "parent", "role", "weights", "section", "outcome", "why"]
    return fold("as a table, with reasons", table(head, rows, caption="What became of each section of each parent"))
