"""Every shipped config builds what it names, and every command in its header names things that exist."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from judge_home import write_home
from omegaconf import DictConfig, OmegaConf
from qsharp_home import write_collection
from tiny import write_byte_tokenizer
from torchtune import config
from torchtune.modules import TransformerDecoder

from tt_reasoning.config import check_config, load_component
from tt_reasoning.errors import UserError
from tt_reasoning.judges.formats import TagFormat

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
DATA = Path(__file__).parent / "data"
STOCK_RECIPES = {
    "full_finetune_distributed", "full_finetune_single_device", "lora_dpo_single_device", "lora_finetune_single_device"
}  # fmt: skip


STUDY = ("tt_reasoning.datasets.working_out_dataset", "tt_reasoning.datasets.problem_dataset")


def header_commands(file: Path) -> list[list[str]]:
    """The commands in a config's header comment, as words."""
    header = file.read_text().split("\n\n")[0]
    return [shlex.split(line) for line in re.findall(r"\b((?:tune run|python) .*)$", header, re.MULTILINE)]


def recipe_of(file: Path) -> str:
    (run,) = {next(w for w in words[2:] if "_" in w and not w.startswith("-")) for words in header_commands(file)
              if words[:2] == ["tune", "run"] and f"configs/{file.name}" in words}
    return run


def example_of(file: Path, folder: Path) -> DictConfig:
    """A config with its files replaced by tiny ones in ``folder``."""
    write_byte_tokenizer(folder)
    cfg = OmegaConf.load(file)
    cfg.tokenizer.path = str(folder)
    cfg.output_dir = str(folder / "out")
    row = {"question": "Question: 2 + 2?", "model_response": "<answer>4</answer>"}
    (folder / "sft.jsonl").write_text(json.dumps(row) + "\n")
    problem = {"id": "0", "source": "s", "split": "train", "question": "2 + 2?", "reference": "4", "kind": "math"}
    answer_set = {"id": "1", "problem": problem, "answers": [], "order_seed": 0}
    (folder / "sets.jsonl").write_text(json.dumps(answer_set) + "\n")
    if "sources" in cfg.dataset:
        cfg.dataset.sources = [str(write_collection(folder / "r1", num_problems=1))]
        return cfg
    if recipe_of(file) == "lora_dpo_single_device":
        pair = {"conversations": [{"from": "human", "value": "2 + 2?"}]}
        pair |= {"chosen": {"from": "gpt", "value": "4"}, "rejected": {"from": "gpt", "value": "Hm, 4"}}
        (folder / "fcs-conversations.json").write_text(json.dumps([pair]))
        cfg.dataset.source = str(folder / "fcs-conversations.json")
        return cfg
    if cfg.dataset._component_ == "torchtune.datasets.chat_dataset":
        turns = [{"from": "system", "value": "Think."}, {"from": "human", "value": "2 + 2?"}]
        turns.append({"from": "gpt", "value": "4"})
        (folder / "train_data.json").write_text(json.dumps([{"system": "Think.", "conversations": turns}]))
        cfg.dataset.data_files, cfg.dataset.cache_dir = str(folder / "train_data.json"), str(folder / "cache")
        return cfg
    if cfg.dataset._component_ in STUDY:
        cfg.dataset.update(data_files=str(DATA / f"{cfg.dataset.source}.jsonl"), num_samples=1)
        if "held_back" in cfg.dataset:
            cfg.dataset.held_back = 1
        return cfg
    cfg.dataset.source = str(folder)
    if takes_step_format(file):
        cfg.dataset.source = str(write_home(folder, num_problems=1) / "steps")
    return cfg


def takes_step_format(file: Path) -> bool:
    """Whether a config's dataset is a judge's, laid out as its recipe says."""
    recipe = recipe_of(file)
    return recipe not in STOCK_RECIPES and "step_format" in importlib.import_module(recipe).KEYS["dataset"].given


def test_the_promised_configs_are_there() -> None:
    promised = {"3B_rl", "1.5B_rl", "0.5B_rl", "3B_sft", "135M_rl_cpu", "135M_generator_sft_cpu", "1.5B_generator_sft"}
    promised |= {"135M_sharegpt_sft_cpu"}
    promised |= {"135M_verifier_cpu", "1.5B_verifier", "135M_qsharp_cpu", "1B_qsharp", "135M_dpo_cpu", "0.5B_dpo"}
    promised |= {f"{size}_gsm8k_{stage}" for size in ("0.5B", "1B") for stage in ("prep_sft", "full_sft", "grpo")}
    promised |= {f"135M_asdiv_{stage}_cpu" for stage in ("prep_sft", "full_sft", "grpo")}
    assert promised <= {file.stem for file in CONFIGS}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_config_builds_every_component_it_names(file: Path, tmp_path: Path) -> None:
    cfg = example_of(file, tmp_path)
    if recipe_of(file) not in STOCK_RECIPES:
        check_config(cfg, importlib.import_module(recipe_of(file)).KEYS)
    with torch.device("meta"):
        model = config.instantiate(cfg.model)
    assert isinstance(model, TransformerDecoder)
    tokenizer = config.instantiate(cfg.tokenizer)
    given = [tokenizer]
    if takes_step_format(file):
        given.append(config.instantiate(cfg.step_format) if "step_format" in cfg else TagFormat(prompt=cfg.prompt))
    dataset = config.instantiate(cfg.dataset, *given)
    assert len(getattr(dataset, "train", dataset)) == 1
    optimizer = config.instantiate(cfg.optimizer, [torch.nn.Parameter(torch.zeros(2))])
    if "lr_scheduler" in cfg:
        config.instantiate(cfg.lr_scheduler, optimizer, num_training_steps=10, last_epoch=-1)
    for name in ("loss", "reward", "metric_logger"):
        if name in cfg:
            assert config.instantiate(cfg[name]) is not None
    if "checkpointer" in cfg:
        load_component(cfg.checkpointer._component_, "checkpointer")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_config_names_its_hardware_download_launch_and_expectation(file: Path) -> None:
    header = file.read_text().split("\n\n")[0]
    for word in ("Hardware:", "Download:", "Launch:", "Expect:"):
        assert f"# {word}" in header


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_header_commands_name_recipes_tools_configs_models_and_keys_that_exist(file: Path) -> None:
    commands = header_commands(file)
    assert any(f"configs/{file.name}" in words for words in commands)
    for words in commands:
        if words[0] == "python":
            assert (ROOT / words[1]).exists()
            names = importlib.import_module("tools.get_model").MODELS
            assert words[words.index("--name") + 1] in names
            continue
        named = ROOT / words[words.index("--config") + 1]
        assert named.exists()
        recipe = recipe_of(named)
        assert recipe in words
        assert recipe in STOCK_RECIPES or (ROOT / "recipes" / f"{recipe}.py").exists()
        cfg = OmegaConf.load(named)
        for override in words[words.index("--config") + 2 :]:
            key, _, _ = override.partition("=")
            assert OmegaConf.select(cfg, key, throw_on_missing=False) is not None or key in cfg


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sed=1", "unknown config key 'sed': did you mean 'seed'?"),
        ("loss.epsilom=0.1", "of loss (tt_reasoning.losses.GRPOLoss) 'epsilom': did you mean 'epsilon'?"),
        ("dataset.prompts=ssa", "did you mean 'prompt'?"),
        ("loss._component_=tt_reasoning.losses.GRPOLos", "did you mean 'tt_reasoning.losses.GRPOLoss'?"),
        ("model._component_=torchtun.models.x", "there is no module 'torchtun.models'"),
        ("group_size=eight", "config key group_size: found 'eight', wanted int"),
        ("device=gpu", "config key device: found 'gpu', wanted 'auto' or 'cpu' or 'cuda'"),
        ("checkpoint=${nowhere}", "nowhere"),
        ("optimizer._component_=5", "config key optimizer: _component_ is 5, wanted a dotted name"),
        ("optimizer._component_=torch.optim", "'torch.optim' is a module, not what it builds"),
        ("optimizer.lr=abc", "config key optimizer.lr: found 'abc', wanted float"),
        ("dataset.max_prompt_tokens=abc", "config key dataset.max_prompt_tokens: found 'abc', wanted int"),
    ],
)
def test_a_mistake_in_a_config_is_named_with_the_nearest_known_word(change: str, message: str) -> None:
    keys = importlib.import_module("grpo_ssa_distributed").KEYS
    cfg = OmegaConf.merge(OmegaConf.load(ROOT / "configs/135M_rl_cpu.yaml"), OmegaConf.from_dotlist([change]))
    with pytest.raises(UserError) as error:
        check_config(cfg, keys)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_key_and_a_missing_component_argument_are_named() -> None:
    keys = importlib.import_module("grpo_ssa_distributed").KEYS
    cfg = OmegaConf.load(ROOT / "configs/135M_rl_cpu.yaml")
    del cfg["group_size"]
    with pytest.raises(UserError, match="config key group_size: missing, wanted int"):
        check_config(cfg, keys)
    cfg.group_size = 4
    del cfg.dataset["source"]
    with pytest.raises(UserError, match="config key dataset.source: missing"):
        check_config(cfg, keys)


@pytest.mark.parametrize("study", ["0.5B_gsm8k_{}", "1B_gsm8k_{}", "135M_asdiv_{}_cpu"])
def test_the_stages_of_a_study_agree_on_their_problems_and_begin_where_the_one_before_ends(
    study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREP_TRAIN_SAMPLES", "7")
    monkeypatch.setenv("TRAIN_SAMPLES", "20")
    monkeypatch.setenv("NUM_GENERATIONS", "3")
    monkeypatch.setenv("OUTPUT_DIR", "elsewhere")
    prep, full, grpo = (
        OmegaConf.load(ROOT / "configs" / f"{study.format(stage)}.yaml") for stage in ("prep_sft", "full_sft", "grpo")
    )
    for name in ("source", "split", "seed", "prompt"):
        assert prep.dataset[name] == full.dataset[name] == grpo.dataset[name]
    assert (prep.dataset.num_samples, prep.dataset.from_end) == (7, True)
    for one in (full, grpo):
        assert (one.dataset.num_samples, one.dataset.held_back) == (20, 7)
        assert OmegaConf.to_container(one.model) == OmegaConf.to_container(prep.model)
    assert (prep.epochs, grpo.group_size, grpo.dataset.worked_only) == (1, 3, True)
    assert prep.output_dir.startswith("elsewhere/")
    assert full.checkpointer.checkpoint_dir == grpo.checkpoint == f"{prep.output_dir}/epoch_0"


def test_a_size_from_the_environment_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUM_GENERATIONS", "many")
    cfg = OmegaConf.load(ROOT / "configs/135M_asdiv_grpo_cpu.yaml")
    with pytest.raises(UserError, match="config key group_size: found 'many', wanted int"):
        check_config(cfg, importlib.import_module("grpo_ssa_distributed").KEYS)
