"""The parameters of a run: one field for each, with its name, type, range, default and meaning.

In:  keys and values.
Out: an immutable :class:`Config` of individually valid values; hfgpt/config/rules.py checks them together.

A new parameter needs a line here and an entry in hfgpt/plan/guide.yaml.
"""

import math
import os
from bisect import bisect_right
from collections.abc import Callable
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field

from hfgpt.base.errors import InputError
from hfgpt.base.language import N_, _, either
from hfgpt.base.units import divisors

GROUPS = {
    "data": N_("Data (chapter 1)"),
    "model": N_("Model (chapter 2)"),
    "optimizer": N_("Optimizer (chapter 3)"),
    "schedule": N_("Learning-rate schedule (chapter 4)"),
    "evaluation": N_("Evaluation and logging (chapter 5.3, 6.2)"),
    "system": N_("Speed and memory (chapter 6.1, 6.2)"),
    "run": N_("Run folder, safety and sharing"),
}

EMBEDDED_DATASET = "shakespeare"
EVAL_BATCH = 12  # sequences in an evaluation batch, independent of batch_size, so runs are compared on the same blocks
SAMPLE_TOKENS = 120  # length of the sample shown at each evaluation
WORDS = r"\S"  # pattern of text that must not be empty


ROLES = {
    "output": "says where the run goes, what it reports or how long it may take: it affects no weight",
    "local": "says where the text is or how the machine computes: it affects no weight either",
    "text": "decides on which tokens the validation loss is measured, and with the seed which tokens a step trains on",
    "order": "decides, with the seed, which tokens a step trains on",
    "identity": "may not change when a run resumes",
    "timeless": "does not change how long a step takes",
    "path": "holds a path, in which ~ is expanded",
    "paths": "holds paths separated by commas",
}


def setting(group: str, unit: str, default: Any, text: str, derived: str = "", roles: str = "", **rules: Any) -> Any:
    """Declare one field.

    Args:
        group: a key of GROUPS.
        unit: the unit it is counted in; "" if it is not a count.
        default: its default value.
        text: its meaning, for --help and the reference page.
        derived: what a default of None means, in words, if :func:`hfgpt.config.rules.resolve` or the run fills it in.
        roles: keys of ROLES, separated by spaces.
        rules: its range, as arguments of pydantic's Field (ge, gt, le, lt, pattern).
    """
    extra: dict[str, Any] = {"group": group, "unit": unit, "derived": derived, "roles": roles.split()}
    return Field(default, description=text, json_schema_extra=extra, **rules)


class BatchSizes(NamedTuple):
    """The global batch: rises linearly over `warmup` steps to `full` sequences, then stays constant."""

    full: int
    warmup: int = 0

    def at(self, step: int) -> int:
        """Return the sequences in the step after the first `step` steps; at least one."""
        return self.full if step >= self.warmup else max(1, self.full * (step + 1) // (self.warmup + 1))

    def before(self, step: int) -> int:
        """Return the total sequences in the first `step` steps."""
        rise = _rise(self)
        return rise[step] if step < self.warmup else rise[-1] + (step - self.warmup) * self.full

    def steps(self, sequences: float) -> float:
        """Return how many steps it takes to train on this many sequences; the inverse of :meth:`before`."""
        rise = _rise(self)
        if sequences >= rise[-1]:
            return self.warmup + (sequences - rise[-1]) / self.full
        return float(bisect_right(rise, sequences) - 1)


@lru_cache(maxsize=16)
def _rise(sizes: BatchSizes) -> tuple[int, ...]:
    """Return the total sequences before each warm-up step and before the first step after the warm-up."""
    return tuple(accumulate(map(sizes.at, range(sizes.warmup)), initial=0))


class Config(BaseModel):
    """All parameters of a run. A field's description is its ``--help`` line and its reference entry.

    :func:`resolve` fills in fields that default to None, and never changes a value that was given.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    # fmt: off
    # -- data
    dataset: str = setting("data", "", EMBEDDED_DATASET, N_("What to train on: 'shakespeare' (embedded), a text file, a folder or glob of .txt/.jsonl/.parquet (also .gz, .zst) or of token files (.bin), a Hub id, or a mix: [{name: a, weight: 3}, {name: b, weight: 1}]"), pattern=WORDS, roles="text local path")
    bin_dtype: Literal["auto", "uint8", "uint16", "uint32", "uint64"] = setting("data", "", "auto", N_("Type of the tokens in .bin files that do not say it; auto: uint16, refused if they look like a wider type"))
    dataset_config: str | None = setting("data", "", None, N_("Configuration name of a Hub dataset"), roles="text local")
    dataset_split: str = setting("data", "", "train", N_("Split of a Hub dataset to train on"), pattern=WORDS, roles="text")
    text_column: str = setting("data", "", "text", N_("Column (of .jsonl, .parquet or Hub data) that holds the text"), pattern=WORDS, roles="text")
    val_fraction: float = setting("data", N_("share of the corpus"), 0.1, N_("Tail of the corpus kept for validation where it has no validation split"), gt=0, lt=1, roles="identity text")
    streaming: bool = setting("data", "", False, N_("Read the corpus as it trains instead of preparing it first; for corpora larger than the disk"), roles="identity order")
    tokenizer: str = setting("data", "", "auto", N_("'char', 'bpe' (byte-level, trained on the dataset), or a Hub id or folder of a tokenizer; auto: init_from's own, else 'char'"), pattern=WORDS, roles="text local path")
    vocab_size: int | None = setting("data", N_("tokens"), None, N_("Vocabulary to train with tokenizer 'bpe'; otherwise the tokenizer decides"), N_("8192 with tokenizer 'bpe'"), ge=257, le=1_000_000, roles="text")
    batch_size: int = setting("data", N_("sequences"), 12, N_("Sequences in one micro-batch: the maximum on a device at a time"), ge=1)
    block_size: int = setting("data", N_("tokens"), 1024, N_("Context length: what the model sees at once; every block has this many targets"), ge=1, roles="identity order")
    gradient_accumulation_steps: int = setting("data", N_("micro-batches"), 1, N_("Micro-batches in an optimizer step, in total over all processes: a step trains on batch_size x gradient_accumulation_steps sequences"), ge=1)
    batch_warmup_iters: int = setting("data", N_("optimizer steps"), 0, N_("Steps over which the sequences in a step rise linearly from a few to batch_size x gradient_accumulation_steps; 0: all from the first step on"), ge=0, le=1_000_000, roles="identity order")
    document_mask: bool = setting("data", "", False, N_("Keep attention inside a document where several are packed into one block (needs a tokenizer with an end-of-text token)"), roles="identity order")
    # -- model
    init_from: str = setting("model", "", "scratch", N_("'scratch', 'resume', or a Hub id or folder of a pretrained GPT-2, whose shape then replaces n_layer, n_head and n_embd"), pattern=WORDS, roles="local path")
    new_embeddings: bool = setting("model", "", False, N_("Reinitialize the token embeddings of a pretrained model, for a tokenizer other than its own"))
    n_layer: int = setting("model", N_("blocks"), 12, N_("Transformer blocks: the depth"), ge=1, le=10_000)
    n_head: int = setting("model", N_("heads"), 12, N_("Attention heads a block; must divide n_embd"), ge=1, le=1_000_000)
    n_embd: int = setting("model", N_("channels"), 768, N_("Width: numbers that stand for one token"), ge=1, le=1_000_000)
    dropout: float = setting("model", N_("probability"), 0.0, N_("Share of activations dropped while training (embeddings, attention, residuals)"), ge=0, lt=1)
    n_inner: int | None = setting("model", N_("channels"), None, N_("Width inside an MLP"), N_("4 x n_embd"), ge=1, le=10_000_000)
    activation_function: Literal["gelu", "gelu_new", "relu2"] = setting("model", "", "gelu", N_("Non-linearity of the MLPs: 'gelu' is exact, 'gelu_new' is GPT-2's approximation by tanh, 'relu2' is the squared ReLU"))
    tie_word_embeddings: bool = setting("model", "", True, N_("The output head is the token embedding; false: a matrix of its own"))
    # -- optimizer
    optimizer: Literal["adamw", "muon"] = setting("optimizer", "", "adamw", N_("'adamw' for all weights, or 'muon' for the matrices inside the blocks and AdamW for the rest"), roles="identity")
    learning_rate: float = setting("optimizer", "", 6e-4, N_("Peak learning rate of AdamW"), gt=0, roles="timeless")
    muon_learning_rate: float = setting("optimizer", "", 0.02, N_("Peak learning rate of Muon, the spectral norm of a step; follows the same schedule"), gt=0, roles="timeless")
    muon_momentum: float = setting("optimizer", "", 0.95, N_("Muon's decay of the gradient average (Nesterov's)"), ge=0, lt=1, roles="timeless")
    weight_decay: float = setting("optimizer", "", 0.1, N_("Decoupled decay, on weights of two or more dimensions"), ge=0, roles="timeless")
    grad_clip: float = setting("optimizer", N_("gradient norm"), 1.0, N_("Gradients are scaled down to this norm; 0 turns clipping off"), ge=0, roles="timeless")
    beta1: float = setting("optimizer", "", 0.9, N_("AdamW's decay of the gradient average"), ge=0, lt=1, roles="timeless")
    beta2: float = setting("optimizer", "", 0.95, N_("AdamW's decay of the squared-gradient average"), ge=0, lt=1, roles="timeless")
    z_loss: float = setting("optimizer", "", 0.0, N_("Weight of a penalty on log(sum(exp(logits)))^2 in the gradients, against logits that drift; 1e-4 is usual; 0: none"), ge=0, lt=1)
    mup_base_width: int | None = setting("optimizer", N_("channels"), None, N_("The n_embd at which the learning rate was tuned: at another n_embd rates and initial weights follow by muP's rule, so that the best rate stays"), N_("no scaling"), ge=1, le=1_000_000)
    # -- schedule
    max_iters: int = setting("schedule", N_("optimizer steps"), 5000, N_("Length of the run"), ge=1, roles="timeless")
    time_budget: str | None = setting("schedule", N_("such as 90s, 20m, 3h"), None, N_("Train as many steps as fit into this time, instead of max_iters: the schedule follows the clock, and its end is evaluated in time"), N_("max_iters steps, as long as they take"))
    lr_schedule: Literal["cosine", "hold_cosine", "wsd", "constant"] = setting("schedule", "", "cosine", N_("After the warm-up: 'cosine' falls to min_lr at lr_decay_iters (nanoGPT), 'hold_cosine' holds until lr_decay_iters and falls to min_lr at max_iters (the chapter), 'wsd' does so in decay_shape, 'constant' holds"), roles="timeless")
    warmup_iters: int | None = setting("schedule", N_("optimizer steps"), None, N_("Linear rise from 0 to learning_rate"), N_("5% of max_iters, at most 2000"), ge=0, roles="timeless")
    lr_decay_iters: int | None = setting("schedule", N_("optimizer steps"), None, N_("Where the decay ends (cosine) or begins (hold_cosine, wsd)"), N_("max_iters; with hold_cosine and wsd 80% of it"), ge=1, roles="timeless")
    decay_shape: Literal["linear", "cosine", "1-sqrt"] = setting("schedule", "", "linear", N_("How the rate falls with lr_schedule 'wsd'"), roles="timeless")
    min_lr: float | None = setting("schedule", "", None, N_("Learning rate at the end of the decay"), N_("learning_rate / 10"), ge=0, roles="timeless")
    # -- evaluation
    eval_interval: int = setting("evaluation", N_("optimizer steps"), 250, N_("Evaluate, sample and save this often, and always at the last step"), ge=1, roles="timeless")
    eval_iters: int = setting("evaluation", N_("batches of 12 sequences"), 200, N_("Fixed blocks a split is evaluated on, or all of it where it is smaller"), ge=1, roles="timeless")
    val_datasets: str | None = setting("evaluation", N_("sources, separated by commas"), None, N_("Further texts to measure the loss on, each as dataset takes it: 'wiki.txt, news=data/news.jsonl' gives val_loss/wiki and val_loss/news"), N_("none"), roles="output paths")
    eval_tasks: str | None = setting("evaluation", N_("names, separated by commas"), None, N_("Questions to answer while training: .jsonl files with context, choices and answer, as HellaSwag's, or tasks of lm-evaluation-harness, by name or .yaml file"), N_("none"), roles="output paths")
    eval_tasks_interval: int | None = setting("evaluation", N_("optimizer steps"), None, N_("Answer the questions this often, a multiple of eval_interval, and at the last step"), N_("eval_interval"), ge=1, roles="output")
    eval_only: bool = setting("evaluation", "", False, N_("Evaluate once and stop"), roles="local")
    log_interval: int = setting("evaluation", N_("optimizer steps"), 10, N_("Record loss, learning rate, gradient norm and speed this often"), ge=1, roles="output")
    sample_prompt: str = setting("evaluation", "", "\n", N_("Prompt of the short text sampled at each evaluation; '' samples none"), roles="local")
    early_stopping_patience: int | None = setting("evaluation", N_("evaluations"), None, N_("Stop after this many evaluations without a better validation loss"), N_("never"), ge=1)
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = setting("evaluation", "", "none", N_("Tracker that mirrors metrics.jsonl"), roles="output")
    project: str = setting("evaluation", "", "hfgpt", N_("Project name in the tracker"), pattern=WORDS, roles="output")
    # -- system
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = setting("system", "", "auto", N_("Where to train; auto takes the accelerator if there is one"), roles="local")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting("system", "", "auto", N_("Precision of the arithmetic, over float32 weights; auto: bfloat16 if the accelerator or CPU is fast in it, float16 on older accelerators, else float32"))
    compile: bool | Literal["auto"] = setting("system", "", "auto", N_("Compile the model with torch.compile: slower start, faster steps; auto: on a CUDA card, if the run is long enough to benefit"), roles="local")
    deterministic: bool = setting("system", "", False, N_("Let torch use only kernels that give the same bits each time; slower on a card, and needed there for a resume bit for bit"))
    activation_checkpointing: bool = setting("system", "", False, N_("Recompute activations in the backward pass: less memory, about a third more time"), roles="local")
    fit: Literal["auto", "always", "never"] = setting("system", "", "auto", N_("Try a micro-batch before the first step and take a smaller one where memory does not suffice, with more accumulation: the same steps; auto: on accelerators"), roles="local")
    process_timeout: str = setting("system", N_("such as 10m, 45s"), "10m", N_("A process that waits this long for another gives up: the other has died, or the network is down"), roles="output")
    cpu_threads: int | Literal["auto"] = setting("system", N_("threads a process"), "auto", N_("Threads of a CPU run; auto: all cores, shared between the processes of this machine"), roles="output")
    num_proc: int | Literal["auto"] = setting("system", N_("processes"), "auto", N_("Processes that prepare the data; auto: one a core"), roles="output")
    # -- run
    max_bad_steps: int = setting("run", N_("optimizer steps"), 1, N_("Stop at this many steps in a row with a NaN or infinite loss or gradient; their updates are left out. float16 overflows, which loss scaling expects, do not count"), ge=1)
    spike_guard: float | None = setting("run", N_("times the average gradient norm"), None, N_("Leave out an update whose gradient norm is more than this many times its running average"), N_("off"), gt=1)
    out_dir: str | None = setting("run", "", None, N_("Run folder: the exported model and its checkpoints"), N_("out/<recipe name>"), pattern=WORDS, roles="output path")
    max_time: str | None = setting("run", N_("such as 11h30m, 90m, 45s"), None, N_("Stop with a checkpoint after this long, before a job's time limit ends the run"), N_("no limit"), roles="output")
    seed: int = setting("run", "", 1337, N_("Decides initial weights, data order and dropout"), ge=0, lt=2**31, roles="identity timeless")
    save_total_limit: int = setting("run", N_("checkpoints"), 2, N_("Checkpoints to keep: the best and the latest are always among them"), ge=1, roles="output")
    license: str = setting("run", N_("the Hub's identifier"), "mit", N_("Licence of the trained model, for its card"), pattern=WORDS, roles="output")
    always_save_checkpoint: bool = setting("run", "", True, N_("Save a checkpoint at every evaluation; false: only where the validation loss is the best so far, and at the end"), roles="local")
    checkpoint_interval: int | None = setting("run", N_("optimizer steps"), None, N_("Save a checkpoint this often too, without evaluating"), N_("only at evaluations"), ge=1, roles="output")
    background_save: bool | Literal["auto"] = setting("run", "", "auto", N_("Write checkpoints and models in the background, from a copy in host memory; auto: on accelerators"), roles="local")
    push_to_hub: bool | Literal["checkpoints"] = setting("run", "", False, N_("Push the model to the Hub whenever it is the best so far, in the background; 'checkpoints': also every checkpoint, so that another machine can continue"), roles="output")
    hub_model_id: str | None = setting("run", N_("name or user/name"), None, N_("Repository to push to"), N_("the run folder's name"), roles="output")
    hub_private: bool = setting("run", "", False, N_("Make the repository private if the run creates it"), roles="output")
    # fmt: on

    @property
    def global_batch(self) -> int:
        """Sequences in one optimizer step, over all processes."""
        return self.batch_size * self.gradient_accumulation_steps

    def micro_batch(self, processes: int) -> int:
        """Return a process's micro-batch: the largest divisor of its share of the global batch within batch_size.

        Raises:
            InputError: the global batch cannot be divided equally; names the nearest batches that can.
        """
        share, rest = divmod(self.global_batch, processes)
        if rest:
            unit = processes // math.gcd(processes, self.batch_size)
            below = self.gradient_accumulation_steps // unit * unit
            options = [
                _("{steps} ({sequences} sequences)", steps=steps, sequences=steps * self.batch_size)
                for steps in (below, below + unit)
                if steps
            ]
            raise InputError(
                "gradient_accumulation_steps = {steps}: a step's {batch} sequences (batch_size {batch_size} x "
                "{steps}) cannot be shared equally by {processes} processes → set gradient_accumulation_steps to "
                "{options}",
                steps=self.gradient_accumulation_steps,
                processes=processes,
                batch=self.global_batch,
                batch_size=self.batch_size,
                options=either(options),
            )
        return next(divisors(share, self.batch_size))

    def of_process(self, processes: int) -> Self:
        """Return the config of one process's share of a step; raises like :meth:`micro_batch`."""
        size = self.micro_batch(processes)
        steps = self.global_batch // processes // size
        return self.model_copy(update={"batch_size": size, "gradient_accumulation_steps": steps})

    @property
    def batch_sizes(self) -> BatchSizes:
        """Sequences in each optimizer step: the global batch, with its warm-up."""
        return BatchSizes(self.global_batch, self.batch_warmup_iters)

    @property
    def tokens_per_iter(self) -> int:
        """Targets trained in one optimizer step (chapter 5.2), after any batch warm-up."""
        return self.global_batch * self.block_size

    def tokens_by(self, step: int) -> int:
        """Return the targets trained in the first `step` steps."""
        return self.batch_sizes.before(step) * self.block_size

    def saves_behind(self, device: str) -> bool:
        """Whether a run on this type of device writes behind its steps: as it says; with `auto`, not on a CPU."""
        return device != "cpu" if self.background_save == "auto" else self.background_save

    @property
    def pretrained(self) -> bool:
        """Whether the run starts from a pretrained model, which brings its own shape."""
        return self.init_from not in ("scratch", "resume")

    @property
    def run_dir(self) -> Path:
        """The run folder of a resolved config."""
        assert self.out_dir is not None, "resolve() fills in out_dir"
        return Path(self.out_dir)

    @property
    def repository(self) -> str:
        """Where a resolved config pushes to: 'user/name', or 'name' for the token's own account."""
        return self.hub_model_id or Path(os.path.abspath(self.run_dir)).name


def declared(key: str) -> dict[str, Any]:
    """Return what a field's declaration says of it: its group, unit and roles, and what a default of None means."""
    extra = Config.model_fields[key].json_schema_extra
    assert isinstance(extra, dict), "every field is declared with setting()"
    return extra


@cache
def with_role(*roles: str) -> tuple[str, ...]:
    """Return the fields that have one of these roles."""
    assert ROLES.keys() >= {*roles}
    return tuple(key for key in Config.model_fields if not {*roles}.isdisjoint(declared(key)["roles"]))


# nanoGPT's parameters with another name here; each function maps the value to our key and value.
RENAMED: dict[str, Callable[[Any], tuple[str, Any]]] = {
    "decay_lr": lambda value: ("lr_schedule", "cosine" if value else "constant"),
    "wandb_log": lambda value: ("report_to", "wandb" if value else "none"),
    "wandb_project": lambda value: ("project", value),
}

# What people call the parameters elsewhere, and in Chinese; such a name is answered with ours.
CALLED = {
    "lr": "learning_rate", "steps": "max_iters", "iters": "max_iters",
    "bs": "batch_size", "batch": "batch_size", "accumulation": "gradient_accumulation_steps",
    "context_length": "block_size", "seq_len": "block_size", "max_length": "block_size", "sequence_length": "block_size",
    "layers": "n_layer", "num_layers": "n_layer", "depth": "n_layer", "heads": "n_head", "num_heads": "n_head",
    "width": "n_embd", "d_model": "n_embd", "embed_dim": "n_embd", "wd": "weight_decay", "clip": "grad_clip",
    "warmup": "warmup_iters", "scheduler": "lr_schedule", "data": "dataset", "output": "out_dir", "gpu": "device",
    "precision": "dtype", "数据集": "dataset", "数据": "dataset", "分词器": "tokenizer", "词表大小": "vocab_size",
    "批次大小": "batch_size", "批大小": "batch_size", "上下文长度": "block_size",
    "梯度累积": "gradient_accumulation_steps", "层数": "n_layer", "注意力头数": "n_head", "头数": "n_head",
    "嵌入维度": "n_embd", "随机失活": "dropout", "优化器": "optimizer", "学习率": "learning_rate",
    "Muon 的学习率": "muon_learning_rate", "权重衰减": "weight_decay", "梯度裁剪": "grad_clip", "训练步数": "max_iters",
    "步数": "max_iters", "学习率衰减方式": "lr_schedule", "学习率调度": "lr_schedule",
    "预热步数": "warmup_iters", "衰减步数": "lr_decay_iters", "最小学习率": "min_lr", "评估间隔": "eval_interval",
    "评估批数": "eval_iters", "日志间隔": "log_interval", "提前停止的耐心值": "early_stopping_patience", "设备": "device",
    "数值精度": "dtype", "精度": "dtype", "编译": "compile", "激活重算": "activation_checkpointing",
    "激活值重算": "activation_checkpointing", "随机种子": "seed",
    "数据集子配置": "dataset_config", "数据集划分": "dataset_split", "文本列": "text_column", "验证集比例": "val_fraction",
    "流式读取": "streaming", "批次预热步数": "batch_warmup_iters", "文档掩码": "document_mask", "初始权重": "init_from",
    "重建嵌入": "new_embeddings", "前馈网络宽度": "n_inner", "激活函数": "activation_function", "共享嵌入": "tie_word_embeddings",
    "Muon 的动量": "muon_momentum", "一阶动量系数": "beta1", "二阶动量系数": "beta2", "z 损失": "z_loss",
    "muP 基准宽度": "mup_base_width", "衰减形状": "decay_shape", "只评估": "eval_only", "采样提示词": "sample_prompt",
    "记录工具": "report_to", "项目名": "project", "确定性计算": "deterministic", "自动适配内存": "fit",
    "进程等待上限": "process_timeout", "CPU 线程数": "cpu_threads", "数据处理进程数": "num_proc", "坏步上限": "max_bad_steps",
    "突增保护": "spike_guard", "训练文件夹": "out_dir", "时间上限": "max_time", "检查点数量上限": "save_total_limit",
    "许可证": "license", "总是保存检查点": "always_save_checkpoint", "检查点间隔": "checkpoint_interval", "后台保存": "background_save", "上传到 Hub": "push_to_hub",
    "Hub 仓库名": "hub_model_id", "私有仓库": "hub_private", "二进制词元类型": "bin_dtype", "时间预算": "time_budget",
    "其他验证集": "val_datasets", "评估任务": "eval_tasks", "任务评估间隔": "eval_tasks_interval",
}  # fmt: skip

# Parameters of nanoGPT and the Trainer that do not exist here, each with its replacement.
INSTEAD = {
    "bias": N_(
        "GPT-2 in Transformers always has biases; remove the key (a nanoGPT checkpoint without them imports with zeros)"
    ),
    "backend": N_("Accelerate chooses the communication backend; see accelerate_configs/"),
    "wandb_run_name": N_("a run is named after its folder; set out_dir"),
    "per_device_train_batch_size": N_(
        "use batch_size (micro-batch) and gradient_accumulation_steps (a total over all processes)"
    ),
    **dict.fromkeys(
        ("num_train_epochs", "num_epochs", "epochs", "轮数"),
        N_("use max_iters; the plan of a recipe shows how many epochs that is"),
    ),
    "max_steps": N_("use max_iters"),
    "warmup_steps": N_("use warmup_iters"),
    "lr_scheduler_type": N_("use lr_schedule"),
    "max_grad_norm": N_("use grad_clip"),
    "output_dir": N_("use out_dir"),
    "bf16": N_("use dtype: bfloat16"),
    "fp16": N_("use dtype: float16"),
    "gradient_checkpointing": N_("use activation_checkpointing"),
    "hidden_size": N_("use n_embd"),
    "num_hidden_layers": N_("use n_layer"),
    "num_attention_heads": N_("use n_head"),
    "max_position_embeddings": N_("use block_size"),
}
