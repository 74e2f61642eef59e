"""tools/evaluate.py on answers of several etas: two problems with two answers each, worked by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from guided_folders import PROBLEMS, REFERENCE, WORLD, Q, eta, write_guided
from loaded_tools import load_tool
from matplotlib.image import imread

from tt_reasoning import store
from tt_reasoning.errors import UserError
from tt_reasoning.evaluation import Report, read_report
from tt_reasoning.guidance.sweep import name_policies, read_sweep
from tt_reasoning.selection import bootstrap_interval, paired_bootstrap
from tt_reasoning.types import Answer, Problem, Score

tool, show_tool = load_tool("evaluate"), load_tool("show_results")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluate(answers: str = "answers", out: str = "out", **options: object) -> str:
    return tool.main(tool.Arguments(answers=Path(answers), out=Path(out), **options))


def report(folder: str) -> Report:
    return read_report(Path(folder) / "results.json")


def values(folder: str) -> dict[str, float]:
    return {result.label: result.value for result in report(folder).results}


def files(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_every_eta_has_its_report_and_one_file_holds_them_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    write_guided(Path("answers"))
    assert evaluate() == "2 of 2 problems evaluated for each of 2 policies; results: out/guidance.json"
    assert values("out/eta_0") == {
        "pass@1": 1 / 4, "oracle@1": 1 / 2, "single@1": 1 / 2, "majority@1": 1 / 2, "length_weighted@1": 1 / 2,
        "pass@2": 1 / 2, "oracle@2": 1 / 2, "single@2": 1 / 4, "majority@2": 1 / 4, "length_weighted@2": 1 / 4,
    }  # fmt: skip
    found = values("out/eta_5")
    assert (found["pass@1"], found["majority@2"], found["pass@2"]) == (3 / 4, 3 / 4, 1)
    assert report("out/eta_5").guidance == eta(5) and report("out/eta_5").counts["answer_reasons"]["match"] == 3
    sweep = read_sweep("out/guidance.json")
    assert [policy.label for policy in sweep.policies] == ["eta=0", "eta=5"]
    assert [policy.folder for policy in sweep.policies] == ["eta_0", "eta_5"]
    assert (sweep.reference, sweep.num_problems, sweep.left_out) == ("eta=0", 2, {})
    assert sweep.policies[1].results == report("out/eta_5").results
    told = capsys.readouterr().out
    assert "demo/test: 2 problems, 2 answers each by models/tiny, for each of 2 policies" in told
    rows = [line.split() for line in told.splitlines()]
    assert ["eta=0", "0.00", "[0.00,", "0.00]", "1.00", "[1.00,", "1.00]", "10"] in rows
    assert ["eta=5", "3.50", "[2.00,", "5.00]", "4.50", "[3.00,", "6.00]", "20"] in rows
    assert any(row[:3] == ["majority@2", "accuracy", "%"] and row[-3:] == ["-", "eta=0", "p"] for row in rows)
    assert any(row[:2] == ["eta=5", "75.0"] and row[4] == "+50.0" for row in rows)


def test_the_divergence_of_an_answer_is_the_mean_over_problems_of_their_answers() -> None:
    world = {eta(0): WORLD[eta(0)], eta(5): [(["2", "2", "2"], [1, 3, 2]), (["5", "4"], [4, 6])]}  # 2 and 5
    write_guided(Path("answers"), world)
    evaluate(num_answers=(2,))
    found = report("out/eta_5").divergence
    assert (found.whole.value, found.sampled.value) == (3.5, 4.5)
    assert (found.whole.low, found.whole.high) == bootstrap_interval([2, 5])
    assert report("out/eta_0").divergence.whole.value == 0


def test_differences_are_paired_over_the_same_problems() -> None:
    write_guided(Path("answers"))
    evaluate()
    zero, five = read_sweep("out/guidance.json").policies
    assert zero.differences == ()
    found = {difference.method: difference for difference in five.differences}
    assert {difference.baseline for difference in five.differences} == {"eta=0"}
    # majority@2 of eta 0: a tie of right and wrong, wrong; of eta 5: right, a tie
    for method, ours, theirs in (("pass@1", [1, 0.5], [0.5, 0]), ("majority@2", [1, 0.5], [0.5, 0])):
        wanted = paired_bootstrap(ours, theirs)
        assert (found[method].difference, found[method].p_value) == (wanted.difference, wanted.p_value)
        assert (found[method].low, found[method].high) == (0.5, 0.5)
    uneven = paired_bootstrap([1, 1], [1, 0])  # pass@2: 1 and 1 against 1 and 0
    assert tuple(getattr(found["pass@2"], name) for name in ("difference", "low", "high", "p_value")) == uneven


def test_a_problem_that_one_eta_cannot_judge_is_left_out_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    write_guided(Path("answers"), WORLD | {eta(5): [(["2", "2"], [1, 3]), (["5", "?"], [4, 6])]})
    assert evaluate().startswith("1 of 2 problems evaluated for each of 2 policies")
    assert (values("out/eta_0")["pass@1"], values("out/eta_5")["pass@1"]) == (1 / 2, 1)
    for name in ("eta_0", "eta_5"):
        counts = report(f"out/{name}").counts
        assert (counts["judged"], counts["left_out"]) == (1, {"timeout": 1})
    assert report("out/eta_5").divergence.whole.value == 2  # of the problem that counts
    assert "left out of all, because not every answer can be judged: timeout 1" in capsys.readouterr().out


def test_an_eta_can_be_named_and_has_the_folder_for_itself(capsys: pytest.CaptureFixture[str]) -> None:
    write_guided(Path("answers"))
    assert evaluate(answers_eta=(5,)) == "2 of 2 problems evaluated; results: out/results.json"
    assert sorted(path.name for path in Path("out").iterdir()) == [".lock", "manifest.json", "results.json"]
    assert values("out")["pass@1"] == 3 / 4 and report("out").divergence.whole.value == 3.5
    told = capsys.readouterr().out
    assert "2 answers each by models/tiny, steered by outputs/q/step_4, eta=5" in told
    assert "KL to the reference, nats an answer: 3.50 [2.00, 5.00]; as sampled, behind top-k and top-p: 4.50" in told
    with pytest.raises(UserError, match="answers has no answers of eta 3; there are: 0, 5"):
        evaluate(out="other", answers_eta=(0, 3))
    assert not Path("other").exists()


def test_answers_without_guidance_are_evaluated_as_ever_and_are_the_reference_of_others() -> None:
    write_guided(Path("plain"), {None: WORLD[eta(0)]})
    assert evaluate("plain", "plain_out").endswith("results: plain_out/results.json")
    assert (report("plain_out").guidance, report("plain_out").divergence) == (None, None)
    row = json.loads(Path("plain_out/results.json").read_text())
    for name in ("guidance", "divergence"):  # as an older version wrote it
        del row[name]
    store.write_json("plain_out/results.json", row)
    manifest = store.read_manifest("plain_out")
    del manifest["arguments"]["guidance"]
    store.write_json("plain_out/manifest.json", manifest)
    assert report("plain_out").results and evaluate("plain", "plain_out")
    write_guided(Path("answers"), {None: WORLD[eta(0)], eta(5): WORLD[eta(5)]})
    evaluate()
    sweep = read_sweep("out/guidance.json")
    assert [policy.folder for policy in sweep.policies] == ["unguided", "eta_5"]
    assert sweep.reference == "unguided" and sweep.policies[0].divergence is None
    assert sweep.policies[1].differences[0].difference == 0.5
    assert evaluate(out="zero", answers_eta=(0,)).endswith("zero/results.json")  # who is not guided has eta 0


def test_rules_stand_beside_each_other_from_one_folder_or_two() -> None:
    mean = eta(5, rule="mean")
    write_guided(Path("both"), WORLD | {mean: WORLD[eta(5)]})
    evaluate("both")
    labels = ["eta=0", "eta=5", "eta=5 (mean)"]
    assert [policy.label for policy in read_sweep("out/guidance.json").policies] == labels
    assert Path("out/eta_5_mean/results.json").exists()
    write_guided(Path("answers"))
    write_guided(Path("cd"), {mean: WORLD[eta(5)][::-1]}, problems=PROBLEMS[::-1])  # in another order
    evaluate(out="two", compare=(Path("cd"),))
    one, two = read_sweep("out/guidance.json"), read_sweep("two/guidance.json")
    assert [policy.label for policy in two.policies] == labels
    assert two.policies[2].differences == one.policies[2].differences
    assert report("two/eta_5_mean").answers == "cd"
    with pytest.raises(UserError, match=r"answers of eta=0 in two folders"):
        evaluate(out="same", compare=(Path("both"),))
    assert not Path("same").exists()


def test_folders_to_other_problems_or_graded_by_other_rules_are_not_compared() -> None:
    write_guided(Path("answers"))
    other = Problem(source="demo", split="test", question="What is 7 + 7?", reference="14")
    write_guided(Path("more"), {eta(9): WORLD[eta(5)]}, problems=[PROBLEMS[0], other])
    with pytest.raises(UserError, match="the answers of eta=0 and of eta=9 are to different problems"):
        evaluate(compare=(Path("more"),))
    write_guided(Path("other"), {eta(9): WORLD[eta(5)]}, sampling=replace(REFERENCE, top_p=0.9))
    with pytest.raises(UserError, match="of eta=0 and of eta=9 were not drawn alike: top_p was 1.0 and 0.9"):
        evaluate(compare=(Path("other"),))
    write_guided(Path("lenient"), {eta(9): WORLD[eta(5)]})
    store.write_json("lenient/verdicts.json", {"arguments": {"fallback": "last_number"}})
    with pytest.raises(UserError, match="graded by different rules: fallback none and last_number"):
        evaluate(compare=(Path("lenient"),))
    assert not Path("out").exists()


def test_policies_are_named_by_what_tells_them_apart() -> None:
    other = replace(Q, value_model="outputs/q2/step_4")
    assert name_policies([Q, other]) == ["eta=0 (q)", "eta=0 (q2)"]
    assert name_policies([eta(0.5), eta(5, outside="keep")]) == ["eta=0.5 (exclude outside)", "eta=5 (keep outside)"]
    assert name_policies([eta(1, rule="categorical"), eta(1, rule="mean")]) == ["eta=1 (categorical)", "eta=1 (mean)"]


def test_without_a_policy_that_does_not_steer_nothing_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    write_guided(Path("answers"), {eta(5): WORLD[eta(5)], eta(1): WORLD[eta(0)]})
    evaluate()
    sweep = read_sweep("out/guidance.json")
    assert sweep.reference is None and [policy.label for policy in sweep.policies] == ["eta=1", "eta=5"]
    assert all(not policy.differences for policy in sweep.policies)
    assert "no answers of eta 0 or without guidance" in capsys.readouterr().out


def test_a_rerun_changes_nothing_and_a_later_eta_comes_to_the_same_folder() -> None:
    write_guided(Path("answers"))
    evaluate()
    first = files("out")
    evaluate()
    assert files("out") == first
    write_guided(Path("answers"), WORLD | {eta(10): WORLD[eta(5)]})
    evaluate()
    assert [policy.label for policy in read_sweep("out/guidance.json").policies] == ["eta=0", "eta=5", "eta=10"]
    with pytest.raises(UserError, match="holds a run of evaluate guidance, not of evaluate; name a new folder"):
        evaluate(answers_eta=(5,))
    with pytest.raises(UserError, match="limit was None, now 1"):
        evaluate(limit=1)


def test_an_eta_with_too_few_answers_is_named() -> None:
    write_guided(Path("answers"), WORLD | {eta(5): [(["2", "2"], [1, 3]), (["5"], [4])]})
    with pytest.raises(UserError, match=rf"problem {PROBLEMS[1].id} has only 1 answers, 2 needed"):
        evaluate(num_answers=(2,))
    assert evaluate() and max(r.k for r in read_sweep("out/guidance.json").policies[0].results) == 1


def test_a_reader_reads_the_answers_of_every_eta() -> None:
    write_guided(Path("answers"))
    Path("script.json").write_text(json.dumps({"fallback": ["<answer>4</answer>"]}))
    engine = replace(tool.Arguments(answers=Path(), out=Path()).engine, name="scripted")
    evaluate(aggregator="script.json", engine=engine, num_answers=(2,))
    assert values("out/eta_0")["aggregator@2"] == values("out/eta_5")["aggregator@2"] == 1 / 2
    assert Path("out/eta_0/aggregator_k2/answers.jsonl").exists()
    compared = read_sweep("out/guidance.json").policies[1].differences
    assert next(d for d in compared if d.method == "aggregator@2").difference == 0


def test_a_damaged_sweep_is_named() -> None:
    for text in ("{", "[]", '{"format": 9}', '{"format": 1}'):
        Path("guidance.json").write_text(text)
        with pytest.raises(UserError, match=r"guidance.json: not a sweep"):
            read_sweep("guidance.json")


def test_the_sampling_of_the_reference_is_what_it_was() -> None:
    assert REFERENCE.eta == 0 and replace(REFERENCE, guidance=eta(5)).eta == 5


def show(results: str, **options: object) -> str:
    return show_tool.main(show_tool.Arguments(results=Path(results), against="kl", **options))


def rows_shown(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()]


def test_the_table_by_eta_says_how_far_and_how_well_and_stars_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    write_guided(Path("answers"))
    evaluate(out="results/q")
    capsys.readouterr()
    assert show("results") == "2 runs under results"
    header, _, zero, five, mark = rows_shown(capsys)
    assert header == ["run", "policy", "problems", "KL", "KL as sampled", "tokens", "pass@1", "majority@2", "pass@2"]
    assert zero[:7] == ["q/eta_0", "eta=0", "2", "0.00 [0.00, 0.00]", "1.00 [1.00, 1.00]", "10", "25.0 [0.0, 50.0]"]
    assert five[:6] == ["q/eta_5", "eta=5", "2", "3.50 [2.00, 5.00]", "4.50 [3.00, 6.00]", "20"]
    assert five[6:] == ["75.0 [50.0, 100.0] *", "75.0 [50.0, 100.0] *", "100.0 [100.0, 100.0]"]
    assert mark == ["* p < 0.05 against the answers that were not steered"]
    show("results/q", methods=("length_weighted",))
    header, *rows, _ = rows_shown(capsys)
    assert header[6:] == ["length_weighted@2"] and [row[0] for row in rows[1:]] == ["eta_0", "eta_5"]


def test_single_runs_that_lie_together_are_one_series_with_the_run_that_was_not_steered() -> None:
    write_guided(Path("plain"), {None: WORLD[eta(0)]})
    write_guided(Path("cd"), {eta(5, rule="mean"): WORLD[eta(5)]})
    write_guided(Path("q"), {eta(5): WORLD[eta(5)]})
    for name in ("plain", "cd", "q"):
        evaluate(name, f"results/{name}")
    reports = show_tool.find_reports(Path("results"))
    series = show_tool.group_by_policy(reports)
    assert {name: list(runs) for name, runs in series.items()} == {"mean": ["plain", "cd"], "bernoulli": ["plain", "q"]}
    points = [show_tool.points_of(runs) for runs in series.values()]
    assert [[(p.report.eta, p.whole.value) for p in of_series] for of_series in points] == [[(0, 0), (5, 3.5)]] * 2
    evaluate("q", "elsewhere/results/more/q")
    evaluate("cd", "elsewhere/results/cd")
    names = show_tool.group_by_policy(show_tool.find_reports(Path("elsewhere")))
    assert list(names) == ["results: mean", "results/more: bernoulli"]


def test_accuracy_is_drawn_against_the_divergence(capsys: pytest.CaptureFixture[str]) -> None:
    write_guided(Path("answers"), WORLD | {eta(5, rule="mean"): WORLD[eta(5)]})
    evaluate(out="results/q")
    assert show("results", plot=Path("new/kl.png")).endswith("plot: new/kl.png")
    pixels = (imread("new/kl.png")[..., :3] * 255).round().astype(int)
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # a line each, in two panels
        assert int((abs(pixels - color) <= 1).all(axis=-1).sum()) > 500
    show("results", plot=Path("kl.svg"), methods=("majority",))
    picture = Path("kl.svg").read_text()
    assert "<!-- majority@2 -->" in picture and "<!-- pass@1 -->" not in picture
    assert picture.count("<!-- 0 -->") and picture.count("<!-- 5 -->") >= 2  # its eta at every point


def test_runs_that_nothing_steered_have_no_table_by_eta(capsys: pytest.CaptureFixture[str]) -> None:
    write_guided(Path("plain"), {None: WORLD[eta(0)]})
    evaluate("plain", "results/plain")
    nothing = "no run is of answers that a value model steered"
    for options, words in (({}, nothing), ({"categories": True}, "give one of them")):
        with pytest.raises(UserError, match=words):
            show("results", **options)


def test_scores_of_a_judge_stand_beside_the_votes_of_every_eta(capsys: pytest.CaptureFixture[str]) -> None:
    """Best of n by a value model (Q#-RM) on the reference's answers, and on those that it steered."""
    answers = write_guided(Path("answers"))
    found = list(store.read_records(answers / "answers.jsonl", Answer))
    store.write_records("rm.jsonl", [Score(answer_id=a.id, score=1 / (1 + a.sample_index)) for a in found])
    evaluate(out="results/q", scores=(Path("rm.jsonl"),))
    first = {name: values(f"results/q/{name}")["best_of_n@2"] for name in ("eta_0", "eta_5")}
    assert first == {"eta_0": 1 / 2, "eta_5": 1 / 2}  # the first answers: 2 and 5
    assert ["best_of_n@2", "accuracy %", "95 % interval", "- eta=0", "p"] in rows_shown(capsys)
    show("results")
    assert "best_of_n@2" in rows_shown(capsys)[0]
