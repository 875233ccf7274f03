"""Every setting of every command: name, type, range, default and meaning.

A setting has one name in four spellings; the command line overrides the environment, which
overrides the file:

    train: {global_batch: 4096}             a YAML file given with --config
    QUICKDRAW_TRAIN__GLOBAL_BATCH=4096      environment
    --train.global_batch 4096               command line
    settings.train.global_batch             code

The tree is frozen. An unknown name is refused with the nearest known one. The sentences below a
setting are its text in --help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from quickdraw_dist.base import storage
from quickdraw_dist.base.errors import RefusedError


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "a number, not true or false")
    return value


def _normalised_by(function: Callable[[str], str]) -> AfterValidator:
    """Normalise an address, or have `command_line` report why that is refused."""

    def normalise(text: str) -> str:
        try:
            return function(text)
        except RefusedError as error:
            raise PydanticCustomError("address", "an address", {"refused": error}) from None

    return AfterValidator(normalise)


Address = Annotated[str, _normalised_by(storage.address)]
LocalFolder = Annotated[str, _normalised_by(storage.local_folder)]
_Number = BeforeValidator(_no_boolean)
_LARGEST = 2**64 - 1
Positive = Annotated[int, Field(gt=0, le=_LARGEST), _Number]
Natural = Annotated[int, Field(ge=0, le=_LARGEST), _Number]
Fraction = Annotated[float, Field(ge=0, lt=1), _Number]
PositiveReal = Annotated[float, Field(gt=0, allow_inf_nan=False), _Number]
NaturalReal = Annotated[float, Field(ge=0, allow_inf_nan=False), _Number]
Probability = Annotated[float, Field(ge=0, le=1), _Number]
OpenFraction = Annotated[float, Field(gt=0, lt=1), _Number]
CompileMode = Annotated[
    Literal["auto", "off", "default", "reduce-overhead", "max-autotune"],
    BeforeValidator(lambda value: "off" if value is False else value),  # YAML's off
]


Channels = Annotated[
    Literal[1, 4],
    # Text, as a command line and the environment give it: only choices of text take it as it is.
    BeforeValidator(lambda value: int(value) if value in ("1", "4") else value),
    _Number,
]


class Section(BaseModel):
    """A group of settings; its docstring is the heading of the group in --help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Shard(Section):
    """Writing drawings into shards."""

    drawings_per_shard: Positive = 65_536
    """Most drawings per shard."""
    block: Positive = 1_024
    """Drawings per block, the unit of compression and of reading."""
    group_shards: Positive = 8
    """Shards per group, the unit of work; a process holds the drawings of one group in memory."""
    compression: Literal["gzip", "none"] = "gzip"
    """gzip: about 280 bytes per drawing. none: 790, but several times as fast to read."""
    content: Literal["bitmaps", "strokes"] = "bitmaps"
    """bitmaps: 28x28 pixels. strokes: pen strokes, about 85 bytes per drawing, which the training
    step renders; the source must have strokes."""
    layout: Literal["blocks", "per_drawing"] = "blocks"
    """blocks: for this trainer. per_drawing: a png and a cls per drawing, for other readers."""
    val_fraction: Fraction = 0.05
    """Fraction of every class in the validation split."""
    test_fraction: Fraction = 0.05
    """Fraction of every class in the test split; the rest is the training split."""
    classes: tuple[str, ...] = ()
    """Classes to shard, in the order of their labels 0, 1, ... Empty: all classes of the source."""
    max_blank: Probability = 0.05
    """Largest fraction of a class's drawings that may be blank (all zero), as the end of an
    unfinished download is; a class with more is refused. 1: any."""
    seed: Natural = 1
    """Random seed of the splits and of the order of drawings in the shards."""


class Stream(Section):
    """Reading shards into batches."""

    reader: Literal["shards", "webdataset"] = "shards"
    """shards: datasets made by jobs.shard, every drawing at most once per epoch (less than a batch
    is dropped), resumable with any number of ranks. webdataset: any WebDataset tar files; of the
    settings of stream, it reads memory_bytes, epoch_drawings, validation_data and class_names."""
    lanes: Literal["auto"] | Positive = "auto"
    """Parallel sequences that the dataset is divided into; a rank reads one or several. Must divide
    train.global_batch. auto: gcd(train.global_batch, 64); beyond 64 ranks gcd with 512,
    beyond 512 with the next power of two."""
    window_blocks: Positive = 4
    """Blocks of a lane whose drawings are shuffled together."""
    threads: Natural = 0
    """Threads per rank that read and decompress. 0: the rank's share of the CPUs, at most 8."""
    memory_bytes: Positive = 1_000_000_000
    """Most bytes of drawings per rank in host memory; decides how far ahead the loader reads."""
    resident: bool = False
    """Read each rank's drawings once and keep them in the GPU's memory (without a GPU in host
    memory, in addition to memory_bytes); about 800 bytes per drawing."""
    cache_folder: LocalFolder = "~/.cache/quickdraw_dist"
    """Local folder for copies of a remote dataset's shards, shared by the ranks of a node."""
    cache_bytes: Natural = 100_000_000_000
    """Most bytes in cache_folder; the least recently used shards are removed first. 0: no cache."""
    epoch_drawings: Natural = 0
    """With reader webdataset: drawings per epoch. 0: all of them, counted once by reading them."""
    validation_data: Address = ""
    """With reader webdataset: folder or pattern of the validation tar files. Empty: the folder val
    beside the folder train in data, if it exists."""
    class_names: tuple[str, ...] = ()
    """With reader webdataset: class names of the labels 0, 1, ... Empty: the 345 official ones."""


class Strokes(Section):
    """Rendering of drawings that are stored as strokes, a layer in front of the network. A dataset
    of bitmaps allows the defaults only."""

    channels: Channels = 1
    """Channels of the picture. 1: ink; the network classifies bitmaps, too. 4: also when a line was
    drawn, and its direction (cosine and sine), which no bitmap holds: for strokes only. On real
    drawings it has gained 1.3 points of top-1 in 2 epochs over 164,272, and no clear amount in 15
    over 11,292."""
    side: Annotated[int, Field(ge=8, le=256), _Number] = 28
    """Pixels along one side of the picture; official bitmaps have 28."""
    unrecognized_weight: Probability = 1.0
    """Weight in the loss of drawings that Google's recogniser did not recognise, about 7 %. 1: like
    all others. 0: train on the others only; those without a verdict count in full."""


class Model(Section):
    """The network."""

    name: str = "sketchcnn"
    """Name of the network, as registered in quickdraw_dist/models/registry.py."""
    width: Positive = 64
    """Channels of the first block; the next two have two and four times as many."""
    dropout: Fraction = 0.3
    """Probability of dropping an output of the hidden layer in training."""


class Optimizer(Section):
    """Optimizer and learning rate; durations count drawings, whatever the batch size."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Optimizer: AdamW, or SGD with Nesterov momentum."""
    learning_rate: PositiveReal = 2e-3
    """Peak learning rate, reached after warmup; sgd needs a far higher one, such as 0.1."""
    momentum: OpenFraction = 0.9
    """Nesterov momentum of sgd."""
    weight_decay: NaturalReal = 0.05
    """Weight decay, except of biases and normalisation. adamw: decoupled from the gradient. sgd:
    added to the gradient, so that it must be far smaller, such as 5e-4."""
    warmup_drawings: Literal["auto"] | Natural = "auto"
    """Drawings over which the learning rate rises linearly from 0. auto: 5 % of the run."""
    final_share: Fraction = 0.01
    """Learning rate at the end of the cosine decay, as a fraction of the peak."""
    clip_norm: NaturalReal = 1.0
    """Largest L2 norm of the gradient; a larger one is scaled down to it. 0: no clipping."""
    label_smoothing: Fraction = 0.1
    """Fraction of the target probability that is spread evenly over all classes."""
    ema_half_life_drawings: Natural = 100_000
    """Half-life, in drawings, of the exponential moving average (EMA) of the weights; the average
    is what is evaluated. 0: no average."""


class Augment(Section):
    """Random changes of the training drawings, made on the device."""

    affine: bool = False
    """Shift, rotate, scale and shear every drawing at random. Off for runs of few epochs, as over
    the whole dataset: on real drawings it has cost 1.9 points of top-1 in 2 epochs over 184,922,
    and gained 0.7 in 15 over 22,500."""
    flip: Probability = 0.0
    """Probability of mirroring a drawing left to right, which removes a clue: mugs, stairs, guitars
    and bats are drawn mostly one way round. Keep 0 where the side matters, as in letters."""
    erase: Probability = 0.0
    """Probability of erasing a random rectangle, 2 to 20 % of the image."""
    thickness: Probability = 0.0
    """Probability of making a drawing's lines thicker, by a random part of a pixel per side."""


class Train(Section):
    """The training loop."""

    epochs: Annotated[int, Field(gt=0, le=1_000_000), _Number] = 4
    """Passes over the training split, those before a resume included."""
    global_batch: Positive = 4_096
    """Drawings per optimizer step, summed over all ranks."""
    micro_batch: Natural = 0
    """Most drawings per rank in one forward pass; gradients of several are accumulated. 0: all."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Device to train on. auto: cuda if there is one, else mps, else cpu."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number format of the forward pass (autocast). auto: bf16 on cuda, fp32 elsewhere."""
    channels_last: bool = True
    """Lay activations and convolution weights out in memory with channels last."""
    compile: CompileMode = "auto"
    """Mode of torch.compile for augmentation, network and loss together. auto: default on cuda, off
    elsewhere. reduce-overhead and max-autotune replay CUDA graphs."""
    deterministic: bool = False
    """Use only algorithms whose results repeat bit for bit; slower."""
    seed: Natural = 1
    """Random seed of initial weights, order of drawings, augmentation and dropout."""
    log_every: Positive = 20
    """Log interval in steps: progress line, metrics.jsonl, Prometheus. Reading the loss waits for
    the device."""
    profile: Natural = 0
    """Steps, after a few first ones, that torch's profiler records: a trace and a table of
    operators for every rank, in the folder profile of output. 0: none."""
    max_skipped: Positive = 10
    """Steps in a row that may be skipped for a loss or gradient of NaN or inf; more end the run."""
    shutdown_seconds: PositiveReal = 20
    """Seconds from a signal to the end of the run; a rank still busy then exits without saving."""
    stall_seconds: PositiveReal = 300
    """Seconds that a rank may stay at one point of a step before the run ends, naming the rank and
    the point. Start-up, compilation and a checkpoint may take six times as long."""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto: resume the run in output, or start one. must: refuse if there is none to resume. never:
    refuse if there is one."""
    allow_dataset_change: bool = False
    """Resume although the dataset is not the one that the checkpoint was trained on."""

    @property
    def slow_phase_seconds(self) -> float:
        """Seconds that a rank may stay in start-up, compilation or a checkpoint."""
        return 6 * self.stall_seconds

    @property
    def collective_timeout_seconds(self) -> float:
        """Seconds that a collective may wait: longer than any watchdog, so that a stalled rank is
        reported by its own watchdog first."""
        return self.slow_phase_seconds + self.stall_seconds


class Checkpoint(Section):
    """Checkpoints, written in the background; there is always one at the end of an epoch."""

    every_drawings: Positive = 5_000_000
    """Drawings trained on between two checkpoints."""
    keep_last: Positive = 2
    """Number of newest checkpoints to keep."""
    keep_best: Natural = 1
    """Number of checkpoints with the best validation to keep in addition."""
    best_metric: Literal["top1", "top3", "map3", "mean_class_accuracy", "loss"] = "top1"
    """Validation metric that ranks checkpoints: lowest loss, or highest of the others."""


class EvaluationSettings(Section):
    """Evaluation on the validation split; there is always one at the end of an epoch."""

    every_drawings: Natural = 0
    """Drawings trained on between two evaluations. 0: only at the end of an epoch."""
    batch: Positive = 2_048
    """Drawings per rank in one forward pass."""


class Metrics(Section):
    """Outputs of a run in addition to metrics.jsonl."""

    port: Annotated[int, Field(ge=0, le=65_000), _Number] = 9_400
    """Port of the Prometheus endpoint of local rank 0; local rank r uses port + r. 0: none."""
    host: str = "127.0.0.1"
    """Address of the Prometheus endpoint. 0.0.0.0: also reachable from other machines."""
    report: bool = True
    """Write report.html into output at the end of the run; needs the extra report."""
    tensorboard: bool = False
    """Write TensorBoard files into the folder tensorboard of a local output; needs that extra."""


class Settings(BaseSettings):
    """The whole tree of settings."""

    model_config = SettingsConfigDict(
        env_prefix="QUICKDRAW_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    data: Address = "data/shards"
    """Sharded dataset: a folder or gs:// address with a manifest.json. With stream.reader
    webdataset: a folder of .tar files, or a pattern such as 'data/x-{000..012}.tar'."""
    output: Address = "runs/quickdraw"
    """Folder of the run (checkpoints, metrics, reports), visible to all ranks; or gs:// address."""
    shard: Shard = Shard()
    stream: Stream = Stream()
    strokes: Strokes = Strokes()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    augment: Augment = Augment()
    train: Train = Train()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: EvaluationSettings = EvaluationSettings()
    metrics: Metrics = Metrics()

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: Any, init_settings: Any, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use the arguments only: `command_line.load` reads files and the environment."""
        return (init_settings,)

    def to_yaml(self) -> str:
        """Return the resolved tree as a file for --config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)


def leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every leaf of a tree, such as `settings.model_dump()`, with its dotted path."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{path}", leaf) for path, leaf in leaves(value))
        else:
            yield name, value


def is_section(name: str) -> bool:
    """Return whether a field of `Settings` is a section rather than a setting."""
    return isinstance(Settings.model_fields[name].default, Section)


def setting_fields() -> dict[str, FieldInfo]:
    """Return the field of every setting by its dotted path, in the order of the tree."""
    fields = Settings.model_fields
    sections = {
        name: type(fields[name].default).model_fields for name in fields if is_section(name)
    }
    return dict(leaves({**fields, **sections}))
