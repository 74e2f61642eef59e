"""Records to tokens, one builder a recipe, for YAML's ``dataset``."""

from tt_reasoning.datasets.rl import RLDataset, RLExample, problem_dataset, ssa_dataset
from tt_reasoning.datasets.sft import SFTDataset, sft_dataset

__all__ = ["RLDataset", "RLExample", "SFTDataset", "problem_dataset", "sft_dataset", "ssa_dataset"]
