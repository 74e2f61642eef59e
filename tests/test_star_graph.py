"""The world of star graphs holds what it says, is learned from and graded as it says; a run goes on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks.star_graph
from benchmarks.star_graph import (
    Arguments,
    Rows,
    World,
    before_end,
    draw_graphs,
    grade_path,
    main,
    parse_world,
    wilson_interval,
    write_start,
    write_value_start,
)
from tt_reasoning.errors import UserError
from tt_reasoning.models import ChatTokenizer, build_from_hf
from tt_reasoning.models.weights import load_weights
from tt_reasoning.training import clip_gradients

ROOT = Path(__file__).parent.parent
WORLD = World(3, 4, 20)


def tiny(out: Path, **more: object) -> Arguments:
    settings = {
        "graphs": ["2,3"], "nodes": 6, "hops": 2, "width": 16, "heads": 1, "reference_steps": 4, "value_steps": 4,
        "batch_size": 8, "save_every": 2, "test": 20, "threads": 1, "eta": [5.0], "dtype": "fp32",
        "chunk": 16,
    }  # fmt: skip
    return Arguments(out=out, **settings | more)


def text_of(tokens: np.ndarray, world: World) -> str:
    return " ".join(world.vocabulary[token] for token in tokens)


def test_a_line_gives_every_edge_once_and_one_arm_leads_to_the_goal() -> None:
    graphs = draw_graphs(WORLD, 200, 0, "reference", 0)
    places = []
    for prompt, paths in zip(graphs.prompts_BP, graphs.paths_BAC, strict=True):
        edges_text, question = text_of(prompt, WORLD).split(" / ")
        edges = list(zip(edges_text.split()[::2], edges_text.split()[1::2], strict=True))
        assert len(edges) == len(set(edges)) == WORLD.num_edges == 9
        assert len({node for edge in edges for node in edge}) == 10
        start, goal = question.removesuffix(" =").split()
        assert sum(a == start for a, _ in edges) == 3 and all(b != start for _, b in edges)
        written = [text_of(path, WORLD).removesuffix(" <|end|>").split() for path in paths]
        for path in written:
            assert len(path) == 4 and path[0] == start
            assert all(edge in edges for edge in zip(path[:-1], path[1:], strict=True))
        assert written[0][-1] == goal and [path[-1] == goal for path in written] == [True, False, False]
        places.append(edges.index((start, written[0][1])))
    assert set(places) == set(range(9))  # the first edge to take stands anywhere


def test_stages_and_steps_draw_their_own_graphs_and_draw_them_again() -> None:
    seen = {
        key: draw_graphs(WORLD, 5, *key).prompts_BP.tobytes()
        for key in [(0, "reference", 0), (0, "reference", 1), (0, "value", 0), (0, "test", 0), (1, "reference", 0)]
    }
    assert len(set(seen.values())) == 5
    assert all(draw_graphs(WORLD, 5, *key).prompts_BP.tobytes() == found for key, found in seen.items())


def test_the_tokenizer_reads_a_line_as_it_was_drawn(tmp_path: Path) -> None:
    write_start(tmp_path / "start", WORLD, tiny(tmp_path))
    tokenizer = ChatTokenizer(tmp_path / "start")
    graphs = draw_graphs(WORLD, 3, 0, "test", 0)
    for prompt, paths in zip(graphs.prompts_BP, graphs.paths_BAC, strict=True):
        line = f"{text_of(prompt, WORLD)} {text_of(paths[0], WORLD)}"
        assert tokenizer.encode(line) == [*prompt, *paths[0]]
        assert tokenizer.decode(prompt.tolist()) == text_of(prompt, WORLD)
    assert tokenizer.stop_tokens == [tokenizer.eos_id] == [len(WORLD.vocabulary) - 1]


def test_a_row_with_all_arms_is_what_each_arm_alone_is(tmp_path: Path) -> None:
    write_start(tmp_path / "start", WORLD, tiny(tmp_path))
    model = build_from_hf(str(tmp_path / "start"))
    model.load_state_dict(load_weights(tmp_path / "start"))
    graphs = draw_graphs(WORLD, 4, 0, "test", 0)
    together = Rows(WORLD, 3)
    with torch.no_grad():
        read = together.run(model, *graphs, lambda hidden: model.norm(hidden[:, together.place_R]))
        found = read.unflatten(1, (3, -1))
        for arm in range(3):
            tokens = torch.from_numpy(np.concatenate([graphs.prompts_BP, graphs.paths_BAC[:, arm]], 1))
            alone = model.norm(model_hidden(model, tokens))[:, WORLD.prompt_tokens :]
            torch.testing.assert_close(found[:, arm], alone, rtol=1e-4, atol=1e-4)


def test_a_head_of_the_first_layer_looks_one_token_back(tmp_path: Path) -> None:
    write_start(tmp_path / "start", WORLD, tiny(tmp_path, width=128, heads=4))
    model = build_from_hf(str(tmp_path / "start"))
    model.load_state_dict(load_weights(tmp_path / "start"))
    first, tokens = model.layers[0], torch.from_numpy(draw_graphs(WORLD, 1, 0, "test", 0).prompts_BP)
    hidden = first.sa_norm(model.tok_embeddings(tokens))
    q, k = (
        first.attn.pos_embeddings(projection(hidden).view(1, -1, 4, 32)).transpose(1, 2)
        for projection in (first.attn.q_proj, first.attn.k_proj)
    )
    scores = (q @ k.transpose(-1, -2))[0] * 32**-0.5
    causal = torch.ones(scores.shape[1:]).tril().bool()
    shares = scores.masked_fill(~causal, -torch.inf).softmax(-1)
    assert shares[0].diagonal(-1).mean() > 0.9
    assert shares[1:].diagonal(-1, 1, 2).mean() < 0.3


def test_the_value_model_begins_as_the_reference_with_its_last_layer_again(tmp_path: Path) -> None:
    write_start(tmp_path / "start", WORLD, tiny(tmp_path))
    write_value_start(tmp_path / "value", tmp_path / "start", 3, seed=0)
    one, more = load_weights(tmp_path / "start"), load_weights(tmp_path / "value")
    for name, weight in one.items():
        place = name.split(".")
        copies = [name]
        if place[:2] == ["layers", "1"]:
            copies = [f"layers.{layer}.{'.'.join(place[2:])}" for layer in (1, 2, 3)]
        assert all(torch.equal(more[copy], weight) for copy in copies)
    new = {name: weight for name, weight in more.items() if name.startswith("layers.4.")}
    assert len(new) == len([name for name in one if name.startswith("layers.1.")])
    assert new["layers.4.attn.output_proj.weight"].abs().max() == new["layers.4.mlp.w2.weight"].abs().max() == 0
    assert not any(name.startswith("layers.5.") for name in more)


@pytest.mark.parametrize("part", [False, True])
def test_the_layers_that_follow_edges_stay_equal_unless_they_may_part(tmp_path: Path, part: bool) -> None:
    main(tiny(tmp_path / "run", part_hops=part))
    weights = load_weights(tmp_path / "run" / "2x3" / "value" / "step_4")
    same = [
        torch.equal(weight, weights[name.replace("layers.1.", "layers.2.")])
        for name, weight in weights.items() if name.startswith("layers.1.")
    ]  # fmt: skip
    assert all(same) is not part


def model_hidden(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    model.unembed = lambda hidden: hidden
    try:
        return model(tokens)
    finally:
        del model.unembed


def test_what_stands_behind_the_end_of_a_sample_is_not_learned_from() -> None:
    end = WORLD.vocabulary.index("<|end|>")
    sample = np.array([[[1, 2, end, end], [1, 2, 3, 4], [end, end, end, end]]])
    assert before_end(sample, WORLD).tolist() == [
        [[True, True, True, False], [True, True, True, True], [True, False, False, False]]
    ]


def test_a_path_is_right_as_a_whole_or_not_at_all() -> None:
    truth = draw_graphs(WORLD, 1, 0, "test", 0).paths_BAC[0]
    assert grade_path(truth[0], truth[0])
    assert not any(grade_path(other, truth[0]) for other in truth[1:])
    for place in range(WORLD.path_tokens):
        other = truth[0].copy()
        other[place] += 1
        assert not grade_path(other, truth[0])


def test_wilson_by_hand() -> None:
    # 1 of 2 with z = 2: middle (0.5 + 4/4) / (1 + 4/2) = 0.5, half 2 * sqrt(0.25/2 + 4/16) / 3 = 0.408
    low, high = wilson_interval(1, 2, z=2.0)
    assert (round(low, 3), round(high, 3)) == (0.092, 0.908)


def test_a_killed_run_goes_on_and_comes_to_what_one_without_a_break_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = main(tiny(tmp_path / "whole"))
    broken, taken = tmp_path / "broken", []

    def stop_at_the_eighth(*arguments: object) -> float:  # the last of the value model, behind its checkpoint of step 2
        taken.append(0)
        if len(taken) == 8:
            raise KeyboardInterrupt
        return clip_gradients(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(benchmarks.star_graph, "clip_gradients", stop_at_the_eighth)
        main(tiny(broken))
    assert (broken / "2x3" / "value" / "step_2").is_dir()
    assert main(tiny(broken)) == whole
    for stage in ("reference", "value"):
        one, other = (load_weights(home / "2x3" / stage / "step_4") for home in (tmp_path / "whole", broken))
        assert all(torch.equal(one[name], other[name]) for name in one)
    content = json.loads((broken / "2x3" / "results.json").read_text())
    assert [r["method"] for r in content["results"]] == ["reference", "Q#", "CD"]


@pytest.mark.parametrize(
    ("text", "says"),
    [("2", "give arms,nodes"), ("1,5", "at least 2 arms"), ("2,2", "at least 3 nodes"), ("7,9", "has 57 nodes")],
)
def test_a_graph_that_is_none_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_world(text, 50)


def test_a_mistake_is_one_line_and_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/star_graph.py", "--out", str(tmp_path / "run"), "--graphs", "2,x"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.strip().splitlines()[-1].startswith("error: --graphs 2,x: give arms,nodes")
    assert not (tmp_path / "run").exists()
