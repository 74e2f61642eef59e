"""Records to tokens, one builder a recipe, for YAML's ``dataset``."""

from tt_reasoning.datasets.preference import PairDataset, pair_dataset
from tt_reasoning.datasets.prm import JudgeDataset, JudgeGroup, JudgeSolution, outcome_dataset, step_dataset
from tt_reasoning.datasets.qsharp import QsharpDataset, qsharp_dataset
from tt_reasoning.datasets.rl import RLDataset, RLExample, problem_dataset, ssa_dataset
from tt_reasoning.datasets.sft import SFTDataset, sft_dataset, working_out_dataset

__all__ = [
    "JudgeDataset",
    "JudgeGroup",
    "JudgeSolution",
    "PairDataset",
    "QsharpDataset",
    "RLDataset",
    "RLExample",
    "SFTDataset",
    "outcome_dataset",
    "pair_dataset",
    "problem_dataset",
    "qsharp_dataset",
    "sft_dataset",
    "ssa_dataset",
    "step_dataset",
    "working_out_dataset",
]
