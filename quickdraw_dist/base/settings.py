"""The one tree of settings: defaults, then a YAML file, then environment, then command line.

Every setting has one name in four spellings, the later winning over the earlier:

    train: {global_batch: 4096}             a YAML file given with --config
    QUICKDRAW_TRAIN__GLOBAL_BATCH=4096      environment
    --train.global_batch 4096               command line
    settings.train.global_batch             code

The tree is frozen; an unknown name anywhere is an error that suggests the nearest one.
"""

from __future__ import annotations

from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "a number, not true or false")
    return value


_Number = BeforeValidator(_no_boolean)
Positive = Annotated[int, Field(gt=0), _Number]
Natural = Annotated[int, Field(ge=0), _Number]
Share = Annotated[float, Field(ge=0, lt=1), _Number]
PositiveReal = Annotated[float, Field(gt=0, allow_inf_nan=False), _Number]
NaturalReal = Annotated[float, Field(ge=0, allow_inf_nan=False), _Number]
Probability = Annotated[float, Field(ge=0, le=1), _Number]
OpenShare = Annotated[float, Field(gt=0, lt=1), _Number]
CompileMode = Annotated[
    Literal["auto", "off", "default", "reduce-overhead", "max-autotune"],
    BeforeValidator(lambda value: "off" if value is False else value),  # YAML's off
]


class Section(BaseModel):
    """A branch of the tree."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Shard(Section):
    """How drawings are written into shards."""

    drawings_per_shard: Positive = 65_536
    """Most drawings in one shard."""
    block: Positive = 1_024
    """Drawings in one block, the unit of compression and of reading."""
    group_shards: Positive = 8
    """Shards' worth of drawings in one group, the unit of work; a worker holds one in memory."""
    compression: Literal["gzip", "none"] = "gzip"
    """gzip: about 280 bytes a drawing; none: 790, but several times as fast to read."""
    layout: Literal["blocks", "per_drawing"] = "blocks"
    """blocks: what this trainer reads; per_drawing: one png and one cls each, for other readers."""
    val_fraction: Share = 0.05
    """Share of every class that goes to the validation split."""
    test_fraction: Share = 0.05
    """Share of every class that goes to the test split."""
    classes: tuple[str, ...] = ()
    """Only these classes, in this order; empty for all that the source has."""
    seed: Natural = 1
    """Decides the splits and the order of drawings in the shards."""


class Stream(Section):
    """How shards become batches."""

    reader: Literal["shards", "webdataset"] = "shards"
    """shards: ours, exactly once and resumed anywhere. webdataset: any WebDataset tars, through
    the webdataset package; of the settings here it reads memory_bytes and the next three."""
    epoch_drawings: Natural = 0
    """webdataset: drawings that count as an epoch; 0: all, counted once by reading everything."""
    validation_data: str = ""
    """webdataset: folder or pattern of the tars to validate on; empty: the folder val beside train
    in data, if there is one."""
    class_names: tuple[str, ...] = ()
    """webdataset: name of every label from 0 on; empty: the 345 official ones."""
    lanes: Literal["auto"] | Positive = "auto"
    """Parallel lines through the dataset; divides the global batch. auto: gcd(global batch, 64),
    or 512 beyond 64 ranks."""
    window_blocks: Positive = 4
    """Blocks of a lane whose drawings are shuffled together."""
    threads: Natural = 0
    """Threads a rank that read and decompress; 0: the rank's share of the processors, at most 8."""
    memory_bytes: Positive = 1_000_000_000
    """Most bytes of drawings that a rank's loader holds; depth and threads follow from it."""
    resident: bool = False
    """Read a rank's drawings once and keep them in the device's memory (without one in the host's,
    beside memory_bytes for batches); about 800 bytes a drawing."""
    cache_folder: str = "~/.cache/quickdraw_dist"
    """Where the shards of a remote dataset are kept on this node, shared by its ranks."""
    cache_bytes: Natural = 100_000_000_000
    """Most bytes kept in cache_folder; the least recently used shards go first. 0: no cache."""


class Model(Section):
    """Which network."""

    name: str = "sketchcnn"
    """A name in the registry, quickdraw_dist/models."""
    width: Positive = 64
    """Channels of the first block; the other blocks have two and four times as many."""
    dropout: Share = 0.3
    """Share of the hidden layer's outputs dropped in training."""


class Optimizer(Section):
    """How the weights move. Durations are in drawings: the same whatever the batch or world."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Which optimizer, fused on the device."""
    learning_rate: PositiveReal = 2e-3
    """Peak learning rate, after warmup; sgd needs a far larger one than adamw, such as 0.1."""
    momentum: OpenShare = 0.9
    """sgd: share of the last move in the next one, Nesterov's way."""
    weight_decay: NaturalReal = 0.05
    """Not of biases and normalisation. adamw: decoupled; sgd: in the gradient, such as 5e-4."""
    warmup_drawings: Literal["auto"] | Natural = "auto"
    """Drawings over which the learning rate rises from 0; auto: 5 % of the run."""
    final_share: Share = 0.01
    """Share of the peak learning rate that the cosine ends at."""
    clip_norm: NaturalReal = 1.0
    """Largest norm of the gradient; 0: not clipped."""
    label_smoothing: Share = 0.1
    """Share of the target spread evenly over all classes."""
    ema_half_life_drawings: Natural = 100_000
    """Half-life of the average of the weights that is evaluated and exported; 0: no average."""


class Augment(Section):
    """Random changes of every training drawing, on the device, as one piece with the network."""

    affine: bool = True
    """Shift, rotation, scale and horizontal shear."""
    flip: Probability = 0.0
    """Share of drawings that are mirrored left to right. Caution, class by class: people draw mugs,
    cups, stairs, guitars and baseball bats mostly one way round, and that clue is lost; where the
    side is the meaning, as with letters, leave it at 0."""
    erase: Probability = 0.0
    """Share of drawings that lose a random rectangle, of 2 to 20 % of the picture."""
    thickness: Probability = 0.0
    """Share of drawings whose lines become thicker, each by its own part of a pixel a side."""


class Train(Section):
    """The loop."""

    epochs: Positive = 4
    """Passes over the training split."""
    global_batch: Positive = 4_096
    """Drawings in one optimizer step, over all ranks."""
    micro_batch: Natural = 0
    """Most drawings a rank holds in one forward pass; more are accumulated. 0: all at once."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """auto: cuda, else mps, else cpu."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto: bf16 on cuda, fp32 elsewhere."""
    channels_last: bool = True
    """Memory format of activations and convolution weights."""
    compile: CompileMode = "auto"
    """torch.compile of augmentation, network and loss as one, by its mode; auto: default on cuda,
    off elsewhere. reduce-overhead and max-autotune replay CUDA graphs."""
    deterministic: bool = False
    """Only algorithms that give the same bits every time; slower."""
    seed: Natural = 1
    """Decides initial weights, order, augmentation and dropout."""
    log_every: Positive = 20
    """Steps between progress lines, metrics and looks at the loss."""
    profile: Natural = 0
    """Steps, after a few first ones, that torch's profiler traces: a trace and a page that sums it
    up, for every rank, in the folder profile of output."""
    max_skipped: Positive = 10
    """Steps in a row that may be skipped because loss or gradient is not a number; then it ends."""
    shutdown_seconds: PositiveReal = 20
    """Seconds from a signal to the end: a rank that is then still busy leaves without saving."""
    start_seconds: PositiveReal = 1_800
    """Seconds that a rank may stand still before its first step is done, and for a checkpoint; then
    the run ends and says where it stood."""
    stall_seconds: PositiveReal = 300
    """Seconds that a rank may stand still otherwise."""
    resume: Literal["auto", "must", "never"] = "auto"
    """auto: go on with the run in output, if there is one; never: refuse if there is one."""
    allow_dataset_change: bool = False
    """Resume although the dataset's digest is not the checkpoint's."""

    @property
    def patience_seconds(self) -> float:
        """Longest that ranks wait for one that stands still: its own watchdog comes first."""
        return self.start_seconds + self.stall_seconds


class Checkpoint(Section):
    """When state is saved, in the background; always at the end of an epoch, too."""

    every_drawings: Positive = 5_000_000
    """Drawings between two checkpoints."""
    keep_last: Positive = 2
    """Newest checkpoints that are kept."""
    keep_best: Natural = 1
    """Checkpoints with the best validation that are kept beside them."""
    best_metric: Literal["top1", "top3", "map3", "mean_class_accuracy", "loss"] = "top1"
    """Figure of the validation that says which are best; of loss the lowest, else the highest."""


class EvaluationSettings(Section):
    """When and how the model is measured; always at the end of an epoch, too."""

    every_drawings: Natural = 0
    """Drawings between two evaluations on the validation split; 0: only at the end of an epoch."""
    batch: Positive = 2_048
    """Drawings that a rank evaluates at once."""


class Metrics(Section):
    """What a run tells of itself beside metrics.jsonl."""

    port: Annotated[int, Field(ge=0, le=65_000), _Number] = 9_400
    """Port of the Prometheus endpoint of the node's first rank, the others follow; 0: none."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets another machine's Prometheus in."""
    report: bool = True
    """At the end of the run, write its page report.html into output; needs the extra report."""
    tensorboard: bool = False
    """TensorBoard's event files, in the folder tensorboard of a local output; an extra."""


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(
        env_prefix="QUICKDRAW_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    data: str = "data/shards"
    """The sharded dataset: a folder or a gs:// address with a manifest.json. With stream.reader
    webdataset: a folder of .tar files, or a pattern such as 'data/x-{000..012}.tar'."""
    output: str = "runs/quickdraw"
    """The run: checkpoints, metrics.jsonl and reports; a folder all ranks see, or gs://."""
    shard: Shard = Shard()
    stream: Stream = Stream()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    augment: Augment = Augment()
    train: Train = Train()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: EvaluationSettings = EvaluationSettings()
    metrics: Metrics = Metrics()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what it is given: `command_line.load` alone reads files and the environment."""
        return (init_settings,)

    def to_yaml(self) -> str:
        """The resolved tree, fit for --config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)
