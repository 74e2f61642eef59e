"""Star graphs: a world in which next-token prediction fails by construction, and a value model that mends it (Q#).

In a star graph G(d, l) arms leave one node, the source, and the goal is the last of the l nodes of one of them, the
source being its first. A line gives its edges in any order, source and goal, and asks for the path. A model that learns
the path token by token learns to follow edges, which is easy from the second node on, and guesses the first one: it is
right once in d times (Bachmann and Nagarajan, arXiv 2403.06963). A value model need only tell from samples of that
model whether they reach the goal. At the last nodes this is easy, and what is learned there helps one node before;
steered by such a one the model of the Q# paper finds the path (arXiv 2502.20548).

Everything is trained from random weights on graphs that are drawn anew at every step: a Llama of two layers on paths
(``reference``), then, from its weights, a value model on its own samples (``value``). Measured are whole paths that are
right, sampled at temperature 1 on graphs that nobody has seen: of the reference, and of the reference steered with the
Bernoulli rule (Q#) and with the mean (CD). A run that was killed goes on.

What lets the value model look ahead: its layers are the reference's last one, which follows an edge, several times
over (and one new layer at the end). They stay equal in training, so what is learned of one edge holds for the next; and
the reference has no layers to spare for learning not to look further than one edge. Layers that may part
(``--part-hops``) look ahead as well, but later.

How it departs from the paper: a small Llama that reads nodes as tokens, and no marks between them, in place of GPT-2
and its tokens; fresh graphs in place of 200,000 seen ten times over; the reference has no public weights to start from
and first learns from lines that name any node of the arm; the value model starts from the reference and learns from its
samples alone, in place of the truth beside wrong samples; a head of the first layer looks one token back before
anything is learned.

    python benchmarks/star_graph.py --out outputs/star_graph --graphs 2,5 3,5 --plot star_graph.png
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from omegaconf import OmegaConf
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from torchtune.modules import MultiHeadAttention, TransformerDecoder
from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.attention import LayerMask, accept_layer_masks
from tt_reasoning.checkpoint import (
    agree_on_last_step,
    prune_checkpoints,
    remove_torn_checkpoints,
    resume_from,
    save_checkpoint,
)
from tt_reasoning.errors import UserError
from tt_reasoning.guidance import CARD, ValueCard, value_card_row
from tt_reasoning.guidance.decode import ValueGuide, load_value_model
from tt_reasoning.losses import ReturnLoss
from tt_reasoning.models import ChatTokenizer, build_from_hf
from tt_reasoning.models.value_head import ValueHead
from tt_reasoning.models.weights import load_weights, save_weights
from tt_reasoning.plots import check_plot_path, save_figure
from tt_reasoning.prefix_tree import any_row_length, pack_group, unembed_as
from tt_reasoning.rollout import generate
from tt_reasoning.tool import require_positive, run_tool
from tt_reasoning.training import Process, arithmetic, build_model, clip_gradients
from tt_reasoning.types import Guidance, Rule, seed_of

MARKS, END = ("/", "="), "<|end|>"
STAGES = ("reference", "value", "test")
T = TypeVar("T")
_EVERY = 50  # steps that a row of the curve is the mean of
_SAMPLED = 256  # graphs that are sampled together
_ROPE_BASE = 10_000.0
_GOAL = -2  # its place in a prompt
_LAYERS = 2  # of the reference: one looks back, one follows an edge
_MUON = 10  # its learning rate, of AdamW's
_CPU = Process(0, 1, torch.device("cpu"))


@dataclass(kw_only=True)
class Arguments:
    out: Path
    """Folder of the run; a run that was killed goes on."""
    graphs: list[str] = field(default_factory=lambda: ["2,5"])
    """What is learned: arms,nodes of a path for each world, such as 2,5 3,5."""
    nodes: int = 50
    """How many names of nodes there are."""
    hops: int = 4
    """How often the value model has the reference's last layer: how many edges it can follow."""
    width: int = 128
    """Of its hidden states."""
    heads: int = 4
    """Of its attention layers."""
    reference_steps: int = 1200
    """Optimizer steps of the reference."""
    waypoint_steps: int = 900
    """The first of them: on lines that name any node of the arm in place of its last."""
    value_steps: int = 3000
    """Most optimizer steps of the value model."""
    enough: float = 0.999
    """The value model is done before its last step when it tells so many samples right at every node but the source."""
    batch_size: int = 128
    """Graphs a step."""
    samples: int = 1
    """Samples of the reference for each graph that the value model learns from."""
    chunk: int = 4096
    """Graphs whose samples are drawn at a time."""
    part_hops: bool = False
    """Let the value model's copies of that layer part in training."""
    lr: float = 2e-3
    """Learning rate of the reference."""
    value_lr: float = 1e-3
    """Learning rate of the value model."""
    dtype: Literal["fp32", "bf16_mixed"] = "bf16_mixed"
    """Arithmetic of the training; sampling is in fp32."""
    eta: list[float] = field(default_factory=lambda: [2.0, 5.0, 10.0])
    """How hard the value model steers: the inverse of the paper's temperature, which is 0.1."""
    top_k: int = 10
    """Tokens that the value model is asked about."""
    test: int = 1000
    """Graphs that are measured, a sample each."""
    save_every: int = 250
    """Steps between two checkpoints."""
    threads: int = 2
    """Torch threads."""
    seed: int = 0
    """Of the graphs, the weights and the samples."""
    plot: Path | None = None
    """File for the picture."""
    json: Path | None = None
    """File for the figures."""


class World(NamedTuple):
    """G(d, l) over so many names of nodes."""

    arms: int
    length: int
    nodes: int

    @property
    def num_edges(self) -> int:
        """Of a graph: each node but the source has one that leads to it."""
        return self.arms * (self.length - 1)

    @property
    def prompt_tokens(self) -> int:
        """Of ``a b ... c d / start goal =``."""
        return 2 * self.num_edges + 4

    @property
    def path_tokens(self) -> int:
        """Of a path with its end."""
        return self.length + 1

    @property
    def vocabulary(self) -> list[str]:
        """All tokens: a number for each node, the marks, the end."""
        return [*map(str, range(self.nodes)), *MARKS, END]


class Batch(NamedTuple):
    """Graphs as tokens. Shapes: B graphs, P prompt tokens, A arms, C tokens of a path."""

    prompts_BP: np.ndarray
    paths_BAC: np.ndarray  # the first arm's is the one to the goal


def parse_world(text: str, nodes: int) -> World:
    """A world by its name.

    Raises:
        UserError: not two numbers, or a graph that the nodes do not suffice for.

    >>> parse_world("2,5", 50).num_edges
    8
    """
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"--graphs {text}: give arms,nodes of a path, such as 2,5")
    world = World(int(parts[0]), int(parts[1]), nodes)
    if world.arms < 2 or world.length < 3:
        raise UserError(f"--graphs {text}: a star has at least 2 arms, and paths of at least 3 nodes")
    if world.num_edges + 1 > nodes:
        raise UserError(f"--graphs {text} has {world.num_edges + 1} nodes, --nodes are {nodes}; give more of them")
    return world


def draw_graphs(world: World, num: int, seed: int, stage: str, step: int) -> Batch:
    """Random graphs: the same arguments give the same ones, and no two stages or steps share their randomness."""
    draw = np.random.default_rng([seed, STAGES.index(stage), step])
    arms, length, edges = world.arms, world.length, world.num_edges
    names = draw.permuted(np.tile(np.arange(world.nodes), (num, 1)), axis=1)
    source = np.broadcast_to(names[:, None, :1], (num, arms, 1))
    paths = np.concatenate([source, names[:, 1 : edges + 1].reshape(num, arms, length - 1)], 2)
    pairs = np.stack([paths[:, :, :-1], paths[:, :, 1:]], -1).reshape(num, edges, 2)
    order = draw.permuted(np.tile(np.arange(edges), (num, 1)), axis=1)
    pairs = np.take_along_axis(pairs, order[:, :, None], 1)

    slash, equals, end = range(world.nodes, world.nodes + len(MARKS) + 1)
    question = np.stack([np.full(num, slash), paths[:, 0, 0], paths[:, 0, -1], np.full(num, equals)], 1)
    prompts = np.concatenate([pairs.reshape(num, -1), question], 1)
    written = np.concatenate([paths, np.full((num, arms, 1), end)], 2)
    return Batch(prompts, written)


def write_start(folder: Path, world: World, args: Arguments) -> None:
    """A Hugging Face folder of a small Llama with random weights and a tokenizer of nodes and marks."""
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(world.vocabulary)}, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    store.write_json(folder / "tokenizer_config.json", {"eos_token": END})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": len(world.vocabulary),
        "num_hidden_layers": _LAYERS, "num_attention_heads": args.heads, "num_key_value_heads": args.heads,
        "hidden_size": args.width, "intermediate_size": 3 * args.width,
        "max_position_embeddings": world.prompt_tokens + world.path_tokens, "rms_norm_eps": 1e-5,
        "rope_theta": _ROPE_BASE, "tie_word_embeddings": True, "hidden_act": "silu", "torch_dtype": "float32",
    }  # fmt: skip
    store.write_json(folder / "config.json", config)
    model = build_from_hf(str(folder))
    draw_weights(model, seed_of("star_graph", args.seed))
    save_weights(model.state_dict(), folder, folder)


def draw_weights(model: TransformerDecoder, seed: int) -> None:
    """Random weights: layers begin by adding nothing, and a head of the first looks one token back.

    To follow an edge ``a b`` from a node ``a`` of the path, ``b`` must know what stands before it, and a second layer
    must hold that against the node. From wholly random weights the two come together late. With the first given the
    second is learned within some thousand graphs; from which node to which to go is never given.
    """
    random = torch.Generator().manual_seed(seed)
    draw_layers(model, seed)
    with torch.no_grad():
        embeddings_VD, first = model.tok_embeddings.weight, model.layers[0].attn
        torch.nn.init.normal_(embeddings_VD, std=0.1, generator=random)
        shared_D = 0.1 * torch.randn(embeddings_VD.shape[1], generator=random)  # positions alone are seen through it
        embeddings_VD += shared_D
        torch.nn.init.normal_(first.output_proj.weight, std=0.15 * len(shared_D) ** -0.5, generator=random)
        look_back(first, shared_D / shared_D.norm())


def draw_layers(model: TransformerDecoder, seed: int) -> None:
    """Random weights for the matrices of all layers; what a layer adds to its input is nothing at first."""
    random = torch.Generator().manual_seed(seed)
    for name, weight in model.layers.named_parameters():
        if weight.dim() > 1:
            adds = "output_proj" in name or ".w2." in name
            torch.nn.init.normal_(weight, std=0.0 if adds else weight.shape[1] ** -0.5, generator=random)


def look_back(layer: MultiHeadAttention, shared_D: Tensor) -> None:
    """Let the first head look one token back whatever that is, by what all tokens share.

    Rotary positions turn pair i of a key at place k against a query at q by (k - q) theta_i; a key that is turned ahead
    by theta_i meets it where q - k = 1. The four fastest pairs tell neighbours apart.
    """
    size = layer.head_dim
    query_E, key_E = torch.zeros(size), torch.zeros(size)
    for pair in range(min(4, size // 2)):
        angle = _ROPE_BASE ** (-2 * pair / size)
        query_E[2 * pair] = 1.0
        key_E[2 * pair], key_E[2 * pair + 1] = math.cos(angle), math.sin(angle)
    layer.q_proj.weight[:size] = torch.outer(query_E, shared_D)
    layer.k_proj.weight[:size] = torch.outer(key_E, shared_D)


def write_value_start(folder: Path, reference: Path, hops: int, seed: int) -> None:
    """The reference with its last layer ``hops`` times over, and behind these a new layer that adds nothing yet."""
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(reference / name, folder / name)
    config = json.loads((reference / "config.json").read_text(encoding="utf-8"))
    store.write_json(folder / "config.json", config | {"num_hidden_layers": _LAYERS + hops})
    model = build_from_hf(str(folder))
    draw_layers(model, seed_of("star_graph value", seed))
    weights = load_weights(reference)
    for name, weight in list(weights.items()):
        if name.startswith(f"layers.{_LAYERS - 1}."):
            rest = name.split(".", 2)[2]
            weights |= {f"layers.{layer}.{rest}": weight.clone() for layer in equal_layers(hops)}
    model.load_state_dict(weights, strict=False)  # the new layer is as drawn
    save_weights(model.state_dict(), folder, folder)


def equal_layers(hops: int) -> range:
    """Which layers of a value model are the reference's last one.

    >>> list(equal_layers(3))
    [1, 2, 3]
    """
    return range(_LAYERS - 1, _LAYERS - 1 + hops)


def keep_equal(model: TransformerDecoder, layers: Sequence[int]) -> None:
    """Give each weight of these layers the gradient of them all, so that layers that begin alike stay alike."""
    for weights in zip(*(model.layers[layer].parameters() for layer in layers), strict=True):
        whole = torch.stack([weight.grad for weight in weights]).sum(0)
        for weight in weights:
            weight.grad = whole.clone()  # each its own: they are clipped in place


class EqualRows(LayerMask):
    """The mask of many rows that are laid out alike.

    Plain products: rows of 40 tokens are too short for the kernels, whose backward in bf16 takes ten times as long.
    """

    def __init__(self, sees_TT: Tensor) -> None:
        self.bias_TT = torch.zeros(sees_TT.shape).masked_fill(~sees_TT, -torch.inf)

    def attend(self, layer: MultiHeadAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same in every layer."""
        scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5 + self.bias_TT
        return scores.softmax(-1).to(q.dtype) @ v


class Rows:
    """Graphs with G completions each, a graph a row, its prompt once (``prefix_tree``)."""

    def __init__(self, world: World, num_completions: int) -> None:
        prompt, completion = [0] * world.prompt_tokens, [0] * world.path_tokens
        row = pack_group(prompt, [completion] * num_completions, "cpu")
        self.mask, self.positions_1T = EqualRows(row.mask.dense()), row.positions_1T
        self.read_R, self.place_R = row.read_R, row.place_R  # where a token is predicted, and where it stands

    def run(
        self, model: TransformerDecoder, prompts_BP: np.ndarray, paths_BGC: np.ndarray, read: Callable[[Tensor], T]
    ) -> T:
        """A pass that ends in ``read(hidden_BTD)``, hidden states before the final norm."""
        tokens_BT = np.concatenate([prompts_BP, paths_BGC.reshape(len(prompts_BP), -1)], 1)
        accept_layer_masks(model)
        with unembed_as(model, read), any_row_length(model):
            return model(torch.from_numpy(tokens_BT), mask=self.mask, input_pos=self.positions_1T)


class Measured(NamedTuple):
    """A step's loss, and the share that was right at each node of a path."""

    loss: Tensor
    right: list[float]


Measure = Callable[[TransformerDecoder, int], Measured]


def measure_reference(world: World, args: Arguments) -> Measure:
    """Next-token cross-entropy of paths, at first of such whose line names any node of the arm.

    A reference that has seen nothing but last nodes learns before all else that a path ends in what is named, and jumps
    there from any arm. Its paths are wrong all the same, but they all end in the goal, by which a value model would
    tell them apart. Having met other nodes there it follows edges to the end.
    """
    rows = Rows(world, 1)

    def measure(model: TransformerDecoder, step: int) -> Measured:
        graphs = draw_graphs(world, args.batch_size, args.seed, "reference", step)
        paths_BC = torch.from_numpy(graphs.paths_BAC[:, 0])
        if step < args.waypoint_steps:
            draw = np.random.default_rng([args.seed, len(STAGES), step])
            place_B = draw.integers(1, world.length, args.batch_size)
            graphs.prompts_BP[:, _GOAL] = graphs.paths_BAC[np.arange(args.batch_size), 0, place_B]

        def read(hidden_BTD: Tensor) -> Tensor:
            return model.output(model.norm(hidden_BTD[:, rows.read_R])).float()

        with arithmetic(args.dtype, _CPU.device):
            logits_BCV = rows.run(model, graphs.prompts_BP, graphs.paths_BAC[:, :1], read)
        loss = F.cross_entropy(logits_BCV.flatten(0, 1), paths_BC.flatten())
        return Measured(loss, (logits_BCV.argmax(-1) == paths_BC)[:, :-1].float().mean(0).tolist())

    return measure


def measure_values(world: World, args: Arguments, pool: SamplePool) -> Measure:
    """Whether a path is right, told at each of its tokens, of the reference's own samples."""
    rows, loss_of = Rows(world, args.samples), ReturnLoss("bce")

    def measure(model: TransformerDecoder, step: int) -> Measured:
        graphs, samples_BGC = pool.batch(step)
        right_BG = (samples_BGC == graphs.paths_BAC[:, :1]).all(-1)
        drawn_S = torch.from_numpy(before_end(samples_BGC, world)).flatten()
        sample_S = torch.arange(right_BG.size).repeat_interleave(world.path_tokens)[drawn_S]
        returns_S = torch.from_numpy(right_BG).float().flatten()[sample_S]

        def read(hidden_BTD: Tensor) -> Tensor:
            return model.value_head(model.norm(hidden_BTD)[:, rows.place_R])

        with arithmetic(args.dtype, _CPU.device):
            values_BRA = rows.run(model, graphs.prompts_BP, samples_BGC, read)
        loss = loss_of(values_BRA.flatten(0, 1)[drawn_S], returns_S, sample_S, right_BG.size, right_BG.size)
        told_BGC = values_BRA.detach().view(samples_BGC.shape).numpy() > 0
        return Measured(loss, (told_BGC == right_BG[..., None])[..., :-1].mean((0, 1)).tolist())

    return measure


def before_end(paths_BGC: np.ndarray, world: World) -> np.ndarray:
    """True at the tokens of a sample up to its end and with it; what fills it up behind that was never drawn."""
    ends = paths_BGC == world.vocabulary.index(END)
    return np.cumsum(ends, -1) - ends == 0


class SamplePool:
    """The reference's samples, drawn a chunk of graphs at a time and kept in files; each is learned from once."""

    def __init__(self, world: World, args: Arguments, folder: Path, reference: Path) -> None:
        self.world, self.args, self.folder, self.reference = world, args, folder, reference
        self.steps_a_chunk = args.chunk // args.batch_size
        self._chunk: tuple[int, Batch, np.ndarray] | None = None

    def batch(self, step: int) -> tuple[Batch, np.ndarray]:
        """A step's graphs and their samples [B, G, C]."""
        number, place = divmod(step, self.steps_a_chunk)
        graphs, samples = self._read(number)
        chosen = slice(place * self.args.batch_size, (place + 1) * self.args.batch_size)
        return Batch(*(part[chosen] for part in graphs)), samples[chosen]

    def _read(self, number: int) -> tuple[Batch, np.ndarray]:
        if self._chunk is None or self._chunk[0] != number:
            graphs = draw_graphs(
                self.world, self.steps_a_chunk * self.args.batch_size, self.args.seed, "value", number
            )
            file = self.folder / f"{number}.npy"
            if not file.exists():
                model = load_model(self.reference)
                seed = seed_of("value", self.args.seed, number)
                drawn, _ = sample_paths(self.world, model, self.reference, graphs, self.args.samples, seed)
                self.folder.mkdir(parents=True, exist_ok=True)
                with store.open_atomic(file) as out:
                    np.save(out, drawn)
            self._chunk = (number, graphs, np.load(file))
        return self._chunk[1:]


def load_model(folder: Path) -> TransformerDecoder:
    """The model of a folder, to sample from."""
    builder = OmegaConf.create({"_component_": "tt_reasoning.models.build_from_hf", "path": str(folder)})
    return build_model(builder, str(folder), _CPU, torch.float32, trainable=False)


def sample_paths(
    world: World,
    model: TransformerDecoder,
    folder: Path,
    graphs: Batch,
    num_samples: int,
    seed: int,
    guide: ValueGuide | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Samples at temperature 1 of so many tokens as a path has, and how far each was steered.

    Shapes: [B, G, C], filled up with the end; [B, G] in nats, 0 without a guide.
    """
    tokenizer = ChatTokenizer(folder)
    prompts, paths, nats = graphs.prompts_BP.tolist(), [], []
    for start in tqdm(range(0, len(prompts), _SAMPLED), desc="sample", unit="batch", leave=False, disable=None):
        numbers = range(start, min(start + _SAMPLED, len(prompts)))
        found = generate(
            model, prompts[start : start + _SAMPLED],
            [[seed_of(seed, number, sample) for sample in range(num_samples)] for number in numbers],
            max_new_tokens=world.path_tokens, temperature=1.0, stop_tokens=tokenizer.stop_tokens,
            decode=tokenizer.decode, guide=guide,
        )  # fmt: skip
        for completions in found:
            paths.append([c.tokens + [tokenizer.eos_id] * (world.path_tokens - len(c.tokens)) for c in completions])
            nats.append([c.divergence.whole if guide else 0.0 for c in completions])
    return np.array(paths), np.array(nats)


def build_optimizers(model: TransformerDecoder) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the layers' matrices, AdamW for the rest: copying a token is learned in a third of AdamW's steps."""
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    matrices = {name for name, weight in trained.items() if name.startswith("layers.") and weight.dim() == 2}
    return (
        torch.optim.Muon([trained[name] for name in trained if name in matrices], weight_decay=0.01),
        torch.optim.AdamW(
            [weight for name, weight in trained.items() if name not in matrices], betas=(0.9, 0.98), weight_decay=0.01
        ),
    )


def train(
    folder: Path, source: Path, num_steps: int, lr: float, measure: Measure, enough: Callable[[list[float]], bool],
    args: Arguments, card: dict[str, Any], *, has_head: bool = False, equal: Sequence[int] = (),
) -> Path:  # fmt: skip
    """Train from ``source`` to the last step, or until it is enough; returns the last checkpoint.

    Args:
        enough: of the shares that were right at each node, over the last steps.
        card: of the checkpoints; with a value head a value model's.
        equal: layers that stay alike (``keep_equal``).
    """
    head = partial(ValueHead, meaning=ReturnLoss("bce").meaning) if has_head else None
    builder = OmegaConf.create({"_component_": "tt_reasoning.models.build_from_hf", "path": str(source)})
    model = build_model(builder, str(source), _CPU, torch.float32, value_head=head)
    optimizers = build_optimizers(model)
    folder.mkdir(parents=True, exist_ok=True)
    remove_torn_checkpoints(folder)
    first = agree_on_last_step(folder, _CPU)
    state: dict[str, Any] = {"seconds": 0.0, "curve": [], "recent": [], "done": False}
    if first:
        state = resume_from(folder, first, model, optimizers, None, _CPU)
    name = f"{folder.parent.name} {folder.name}"
    with tqdm(total=num_steps, initial=first, desc=name, unit="step", disable=None) as bar:
        for step in range(first, 0 if state["done"] else num_steps):
            began = time.perf_counter()
            measured = measure(model, step)
            measured.loss.backward()
            if equal:
                keep_equal(model, equal)
            clip_gradients(model, 1.0)
            pace = min(1.0, (step + 1) / 50, max(0.02, 2 * (1 - step / num_steps)))
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = pace * lr * (_MUON if isinstance(optimizer, torch.optim.Muon) else 1)
                optimizer.step()
                optimizer.zero_grad()
            state["seconds"] += time.perf_counter() - began
            state["recent"].append([measured.loss.item(), *measured.right])
            bar.update()
            if (step + 1) % _EVERY == 0:
                loss, *right = np.mean(state["recent"], 0).tolist()
                row = {"step": step + 1, "seconds": round(state["seconds"], 1), "loss": loss, "right": right}
                state["curve"].append(row)
                state["recent"] = []
                bar.set_postfix_str(f"loss {loss:.3f}, right {' '.join(f'{share:.2f}' for share in right)}")
                state["done"] = enough(right)
            state["done"] = state["done"] or step + 1 == num_steps
            if state["done"] or (step + 1) % args.save_every == 0:
                save_checkpoint(
                    folder, step + 1, model, optimizers, None, str(source), _CPU, card, card_name=CARD, state=state
                )
                prune_checkpoints(folder, 1)
            if state["done"]:
                break
    store.write_json(folder / "curve.json", state["curve"])
    return folder / f"step_{agree_on_last_step(folder, _CPU)}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """Whole paths that were right, of ``count`` graphs, by one method; ``nats`` is the mean KL to the reference."""

    method: str
    eta: float
    right: int
    count: int
    nats: float

    @property
    def share(self) -> float:
        """Of the graphs."""
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %."""
        return wilson_interval(self.right, self.count)


def wilson_interval(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927), which is none too narrow where all or none are right.

    >>> [round(end, 3) for end in wilson_interval(10, 10)]
    [0.722, 1.0]
    """
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def grade_path(sample_C: Sequence[int], truth_C: Sequence[int]) -> bool:
    """Every token is right, the end too: one wrong node is a wrong path.

    >>> grade_path([7, 50, 3, 54], [7, 50, 3, 54]), grade_path([7, 50, 3, 50], [7, 50, 3, 54])
    (True, False)
    """
    return list(sample_C) == list(truth_C)


def measure_methods(world: World, args: Arguments, reference: Path, value: Path) -> list[Result]:
    """Exact match of the reference and of each way to steer it, on the same unseen graphs with the same seeds."""
    graphs = draw_graphs(world, args.test, args.seed, "test", 0)
    policy, (values, card) = load_model(reference), load_value_model(value, _CPU, torch.float32)
    methods = [("reference", 0.0), *(("Q#", eta) for eta in args.eta), ("CD", max(args.eta))]
    results = []
    for method, eta in methods:
        rule: Rule = "mean" if method == "CD" else "bernoulli"
        guidance = Guidance(value_model=str(value), eta=eta, top_k=args.top_k, rule=rule)
        guide = ValueGuide(values, card, guidance, len(world.vocabulary))
        paths, nats = sample_paths(
            world, policy, reference, graphs, 1, seed_of("test", args.seed), guide if eta else None
        )
        right = sum(map(grade_path, paths[:, 0].tolist(), graphs.paths_BAC[:, 0].tolist()))
        results.append(
            Result(method=method, eta=eta, right=right, count=args.test, nats=round(float(nats.mean()), 4))
        )
    return results


def run_world(world: World, args: Arguments, folder: Path) -> dict[str, Any]:
    """All stages of one world; what is done is read."""
    done = folder / "results.json"
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    write_start(folder / "start", world, args)
    reference = train(
        folder / "reference", folder / "start", args.reference_steps, args.lr, measure_reference(world, args),
        lambda right: False, args, {"world": list(world)},
    )  # fmt: skip
    pool = SamplePool(world, args, folder / "samples", reference)
    write_value_start(folder / "value_start", reference, args.hops, args.seed)
    value = train(
        folder / "value", folder / "value_start", args.value_steps, args.value_lr, measure_values(world, args, pool),
        lambda right: min(right[1:]) >= args.enough, args,
        value_card_row(ValueCard(head="V", loss="bce", prompt="star_graph")), has_head=True,
        equal=() if args.part_hops else equal_layers(args.hops),
    )  # fmt: skip
    began = time.perf_counter()
    results = measure_methods(world, args, reference, value)
    curves = {stage: json.loads((folder / stage / "curve.json").read_text()) for stage in ("reference", "value")}
    minutes = {stage: curve[-1]["seconds"] / 60 if curve else 0.0 for stage, curve in curves.items()}
    minutes["test"] = (time.perf_counter() - began) / 60
    content = {
        "graphs": f"{world.arms},{world.length}", "nodes": world.nodes, "minutes": minutes, "curves": curves,
        "results": [vars(r) | {"share": r.share, "interval": r.interval} for r in results],
    }  # fmt: skip
    store.write_json(done, content)
    return content


def main(args: Arguments) -> str:
    """Every world, the table, the picture."""
    worlds = check(args)
    torch.set_num_threads(args.threads)
    identity = {
        name: value for name, value in vars(args).items()
        if name not in ("out", "graphs", "save_every", "threads", "plot", "json")
    }  # fmt: skip
    with store.open_run(args.out, "star_graph", identity) as out:
        found = [run_world(world, args, out / f"{world.arms}x{world.length}") for world in worlds]
    for line in table(found):
        print(line)
    if args.plot:
        plot(found, args.plot)
    if args.json:
        store.write_json(args.json, {"arguments": identity, "worlds": found})
    best = [max((r for r in w["results"] if r["method"] == "Q#"), key=lambda r: r["share"]) for w in found]
    return "; ".join(
        f"G({w['graphs']}): reference {w['results'][0]['share']:.1%}, Q# {b['share']:.1%} at eta {b['eta']:g} "
        f"({b['count']} graphs)" for w, b in zip(found, best, strict=True)
    )  # fmt: skip


def check(args: Arguments) -> list[World]:
    """The worlds that are asked for.

    Raises:
        UserError: a number that cannot work, or a picture that cannot be written.
    """
    require_positive(
        args, "hops", "width", "heads", "reference_steps", "value_steps", "batch_size", "samples", "test",
        "save_every", "threads", "top_k",
    )  # fmt: skip
    if args.width % (2 * args.heads):
        raise UserError(f"--width {args.width} is not a multiple of twice --heads {args.heads}")
    if not args.eta or min(args.eta) <= 0:
        raise UserError(f"--eta {' '.join(map(str, args.eta))}: give numbers above 0; 0 is the reference")
    if args.batch_size > args.chunk:
        raise UserError(f"--batch-size {args.batch_size} is above --chunk {args.chunk}")
    if args.plot:
        check_plot_path(args.plot)
    if not args.graphs:
        raise UserError("--graphs names none; give arms,nodes of a path, such as 2,5")
    return [parse_world(text, args.nodes) for text in args.graphs]


def table(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of a table in Markdown."""
    yield "| graphs | method | exact match % | KL to the reference (nats) |"
    yield "|---|---|---|---|"
    for world in found:
        for r in world["results"]:
            name = f"{r['method']}, eta {r['eta']:g}" if r["eta"] else r["method"]
            low, high = r["interval"]
            share = f"{100 * r['share']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            yield f"| G({world['graphs']}) | {name} | {share} | {r['nats']:.2f} |"


def plot(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Left the exact match of every method, right how the value model learned, node by node, for each world."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 1.0 + 3.4 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), 2, squeeze=False)
    for (bars, curve), world in zip(panels, found, strict=True):
        results = world["results"]
        names = [f"{r['method']}\neta {r['eta']:g}" if r["eta"] else r["method"] for r in results]
        shares = [100 * r["share"] for r in results]
        spread = [[100 * (r["share"] - r["interval"][0]) for r in results],
                  [100 * (r["interval"][1] - r["share"]) for r in results]]  # fmt: skip
        colors = {"reference": "#5a5a5a", "Q#": "#009e73", "CD": "#e69f00"}
        bars.bar(names, shares, 0.7, yerr=spread, capsize=3, color=[colors[r["method"]] for r in results],
                 error_kw={"ecolor": "#444444", "elinewidth": 1})  # fmt: skip
        bars.axhline(100 / int(world["graphs"].split(",")[0]), color="#b0b0b0", linestyle=":", label="1/d")
        bars.set_title(f"G({world['graphs']}): whole paths that are right", size=10)
        bars.set_ylabel("exact match (%)")
        bars.set_ylim(0, 105)
        rows = world["curves"]["value"]
        last = len(rows[0]["right"]) if rows else 0
        for node in range(1, last):
            color = colormaps["viridis"](0.9 * (node - 1) / max(1, last - 2))
            shares = [100 * row["right"][node] for row in rows]
            label = f"{last - 1 - node} before the goal"
            curve.plot([row["step"] for row in rows], shares, linewidth=1.6, color=color, label=label)
        curve.set_title(f"G({world['graphs']}): what the value model says at each node", size=10)
        curve.set_xlabel("step")
        curve.set_ylabel("right (%)")
        for axes in (bars, curve):
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_axisbelow(True)
            axes.grid(axis="y", color="#e8e8e8")
            axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
