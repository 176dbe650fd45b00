"""What prepare made of the sources, and the teacher of them: counts, licences, personal data, evaluation items."""

from typing import Any

from pipeline.report.figures import NONE, Cell, percent, whole, words
from pipeline.report.tables.judged import JudgedTable
from pipeline.run.manifest import ManifestRow
from pipeline.run.rundir import RunDir
from pipeline.screening import provenance

Row = dict[str, Any]
POLICIES = {
    "warn": "Warned of what restricts training, refused nothing (licence_policy=warn).",
    "enforce": "None of them forbids it, or the run would have stopped (licence_policy=enforce).",
    "off": "Nobody was warned (licence_policy=off).",
}
LEFT_OUT = ("duplicates", "near_duplicates", "contaminated", "bad_rows")  # of the counts


def described(run_dir: RunDir) -> Row:
    """What the page says of a run whose prepare has finished."""
    manifest = run_dir.manifest("prepare")
    personal = provenance.personal_data(run_dir)
    sought = personal.sought.get("prompts", provenance.Sought([], ""))
    return {
        "counts": manifest["counts"],
        "left_out": _listed({why: manifest["counts"].get(why, 0) for why in LEFT_OUT}),
        "sources": _sources(manifest),
        "licences": _licences(run_dir),
        "policy": POLICIES.get(provenance.licence_policy(run_dir), ""),
        "sought": ", ".join(sought.kinds),
        "sought_beyond": sought.beyond,
        "personal": personal.found["prompts"],
        "held_against": provenance.held_against(run_dir),
        "synthesis": _synthesis(manifest),
        "not_recorded": provenance.NOT_RECORDED,
        "lists": [file["name"] for file in manifest["files"] if file["name"].endswith(".jsonl")],
    }


def _sources(manifest: ManifestRow) -> JudgedTable | None:
    """Each source's rows: read, left out and why, kept; None where an earlier version did not record them."""
    if "licences" not in manifest or "left_out" not in manifest:
        return None
    kept: dict[str, int] = {}
    for of in manifest["licences"]["sources"]:
        kept[of["source"]] = kept.get(of["source"], 0) + of["prompts"]
    faults: dict[str, dict[str, int]] = {}
    for of in manifest["left_out"]:
        faults.setdefault(of["source"], {})[of["reason"]] = of["prompts"]
    rows = []
    for source in dict.fromkeys([*kept, *faults]):
        num_kept, of_source = kept.get(source, 0), faults.get(source, {})
        cells = [whole(num_kept + sum(of_source.values())), whole(num_kept), _listed(of_source)]
        rows.append((source, list(map(Cell, cells))))
    return JudgedTable("Prompts by source", ["Source", "Read", "Kept", "Left out"], rows)


def _licences(run_dir: RunDir) -> JudgedTable | None:
    told = provenance.licensed(run_dir)
    if told is None:
        return None
    rows = [
        (row.who, [Cell(row.licence), Cell(NONE if row.prompts is None else whole(row.prompts)), Cell(row.terms)])
        for row in told[0]
    ]
    caption = f"Licences (the teacher's found in {told[1]})"
    return JudgedTable(caption, ["Of", "Licence", "Prompts", "What it says of training on its texts"], rows)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{words(why)} {whole(num)}" for why, num in counts.items() if num) or NONE


def _synthesis(manifest: ManifestRow) -> Row | None:
    """What the teacher wrote of the prompts, method by method, and how various they are; None where it wrote none."""
    report = manifest.get("synthesis")
    if not report:
        return None
    methods = []
    for method, tally in report["methods"].items():
        needed = tally["drafts"] - tally["reasons"].get("not_needed", 0)
        reasons = sorted(tally["reasons"].items(), key=lambda item: -item[1])
        dropped = ", ".join(f"{words(name)} {num}" for name, num in reasons)
        taken = percent(tally["written"] / max(needed, 1))
        methods.append({**tally, "name": words(method), "yield": taken, "dropped": dropped or NONE})
    measured = report["diversity"]
    shares = ("distinct_1_frac", "distinct_2_frac", "distinct_3_frac", "cluster_coverage_frac")
    rows = []
    for name, meaning in (("sources", "Of the sources"), ("written", "Written by the teacher"), ("all", "All")):
        if measured:
            of = measured[name]
            cells = [whole(of["prompts"]), *(percent(of[share]) for share in shares)]
            rows.append((meaning, [*cells, f"{of['num_clusters_even']:.1f}"]))
    return {"written": report["written"], "methods": methods, "measured": measured, "diversity": rows}
