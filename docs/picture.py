"""Draws `docs/reuse.svg`: what becomes of the leaves of a proof on compressed variants of its network.

    mucg4 bench instances --store fresh
    python docs/picture.py bench-out/instances

Only counts are drawn, and counts repeat exactly, so the picture is the same on every machine.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
WIDTH, LEFT, RIGHT, TOP, ROW, BAR, INK = 760, 116, 150, 64, 26, 15, "#1F2933"  # pixels
FATES = (
    ("#0072B2", "accepted by the checker as they are"),
    ("#56B4E9", "closed by dual ascent"),
    ("#D55E00", "searched"),
)
LABELS = {
    "reserialise": "re-serialised",
    "permute": "permuted",
    "fp16": "float16",
    "tune3": "fine-tuned",
    "qdq8": "int8 (QDQ)",
    "int8": "int8",
    "prune10": "10 % pruned",
    "neurons10": "10 % narrower",
    "prune30": "30 % pruned",
}


def totals(run: Path, instances: Path) -> dict[str, list[int]]:
    """Method -> leaves of the originals' proofs by what became of them on the variants, in the order of `FATES`."""
    methods = {r["onnx"]: r["method"] for r in csv.DictReader((instances / "manifest.csv").open())}
    out = {method: [0] * len(FATES) for method in LABELS}
    for r in map(json.loads, (run / "runs.jsonl").read_text().splitlines()):
        if methods.get(r["onnx"]) in out and r["verdict"] == "unsat" and r["stored_leaves"]:
            rungs = r["rungs"]
            fates = [rungs["checked"], rungs["ascent"]]
            fates.append(r["stored_leaves"] - sum(fates))
            out[methods[r["onnx"]]] = [a + b for a, b in zip(out[methods[r["onnx"]]], fates, strict=True)]
    return out


def drawn(counts: dict[str, list[int]]) -> str:
    height = TOP + ROW * len(counts) + 8
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' font-family="sans-serif" font-size="13" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        '<text x="8" y="22" font-size="15">What becomes of the leaves of a proof when its network is compressed</text>',
    ]

    def rect(x: float, y: float, width: float, colour: str) -> None:
        out.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>')

    for (colour, text), x in zip(FATES, (8, 214, 470), strict=True):
        rect(x, 36, 14, colour)
        out.append(f'<text x="{x + 20}" y="47">{text}</text>')
    for i, (method, fates) in enumerate(counts.items()):
        y, x, leaves = TOP + ROW * i, float(LEFT), sum(fates)
        out.append(f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{LABELS[method]}</text>')
        for (colour, _), count in zip(FATES, fates, strict=True):
            width = (WIDTH - LEFT - RIGHT) * count / leaves
            rect(x, y, width, colour)
            x += width
        share = f"{100 * (leaves - fates[-1]) // leaves} % of {leaves} leaves"
        out.append(f'<text x="{WIDTH - RIGHT + 10}" y="{y + 12}">{share}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


if __name__ == "__main__":
    counted = totals(Path(sys.argv[1]), FOLDER.parent / "instances")
    (FOLDER / "reuse.svg").write_text(drawn({k: v for k, v in counted.items() if sum(v)}))
