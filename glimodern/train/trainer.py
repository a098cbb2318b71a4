"""The state of a training run: data, model, optimizer, progress, and the files that it writes."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Tensor

from glimodern.checkpoint.adapter import remove_adapter
from glimodern.data import Dataset, asked_types, validate
from glimodern.display import console
from glimodern.evaluate import check_evaluation
from glimodern.files.atomic import user_path
from glimodern.inputs.batch import PackedBatch
from glimodern.model.glimodern import GLiModern

from .batches import TrainingBatches
from .config import DataConfig, TrainConfig
from .encoder_cache import EncoderCache, check_room
from .interrupts import Interrupts
from .limits import Budget, LongTexts, count_cut, group_budgets, own_types, prompt_budgets
from .log import RunLog, git_commit
from .lora import Lora
from .ranks import evaluate_together, this_device, together
from .replay import replayed
from .resume import (
    CACHE_FOLDER,
    FINE_TUNED,
    PER_LAUNCH,
    Progress,
    check_earlier_run,
    clear_output,
    load_progress,
    newest,
    remove_fine_tuned,
    save_progress,
)
from .schedule import rate
from .setup import (
    build_model,
    check_gold,
    check_paths,
    join,
    load_data,
    optimizer_groups,
    resolved,
    total_norm,
    training_dtype,
)
from .windows import training_budgets
from .zero_shot import zero_shot_sets

logger = logging.getLogger(__name__)


class Trainer:
    """A training run: data, model, optimizer and progress.

    config: with all settings resolved. done: the progress so far. saved: the step of the newest checkpoint. durations:
    seconds of each step of this launch. first_word, seconds_before: words and seconds of earlier launches. words_cut,
    entities_lost: words and gold entities of training batches that the model could not read. cache: of the frozen
    encoder's outputs; None: there is none.

    Raises ValueError, before any file is replaced, if data, settings and output folder do not fit together.
    """

    def __init__(self, config: TrainConfig, interrupts: Interrupts) -> None:
        self.interrupts = interrupts
        dtype = training_dtype(config.run.dtype, this_device())
        self.output = check_paths(config)
        self.checkpoints = self.output / "checkpoints"
        self.accelerator = Accelerator(
            mixed_precision={"fp32": "no"}.get(dtype, dtype),
            gradient_accumulation_steps=config.run.accumulation,
            log_with="tensorboard",
            project_config=ProjectConfiguration(project_dir=str(self.output), logging_dir=str(self.output)),
        )
        accelerator, run = self.accelerator, config.run
        self.console = console(quiet=not accelerator.is_main_process)
        self.commit = git_commit()
        with together(accelerator, "reading the inputs"):
            check_earlier_run(self.output, resume=run.resume, overwrite=run.overwrite)
            self.data = load_data(config.data, run.seed, config.model.splitter())
            self.train_set, self.dev_set, self.test_sets, _ = self.data
            if not len(self.train_set):
                raise ValueError(f"train_data: expected at least one sentence, got none from {config.data.train_data}")
            self.model = build_model(config.model, self.train_set, config.data.max_types, run.seed)
            self._check_data(config.data)
            self.config = resolved(config, self.model, dtype)
            if config.model.freeze_encoder:
                self.model.freeze_encoder()
            self._prepare_tuning()
            rank, world = accelerator.process_index, accelerator.num_processes
            self.batches = TrainingBatches(self.train_set, self.model.packer, self.config, rank, world)
            self.total = self.batches.steps()
        groups = optimizer_groups(self.model, config.optim, config.tuning.lora_lr)
        optimizer = torch.optim.AdamW(groups, fused=True)
        self.prepared, self.optimizer = accelerator.prepare(self.model, optimizer)
        self.settings = {key: value for key, value in self.config.flat().items() if key not in PER_LAUNCH}
        self.settings["num_processes"] = world
        self.done = self._find_progress()
        with together(accelerator, "opening the encoder's cache"):
            self.cache = self._encoder_cache()  # by the weights that a resumed run goes on with
        self.saved = self.done.step
        self.first_word, self.seconds_before = self.done.words, self.done.seconds
        self.durations: list[float] = []
        self.words_cut = self.entities_lost = 0
        with together(accelerator, "making room in output_dir"), interrupts.held():
            if accelerator.is_main_process:
                self.output.mkdir(parents=True, exist_ok=True)
                cache = None if self.cache is None else self.cache.folder
                clear_output(self.output, overwrite=run.overwrite, cache=cache)
        accelerator.init_trackers("tensorboard")
        self.log = RunLog(accelerator, self.output, self.total, self.done, run.progress)
        self.started = time.perf_counter()

    def _encoder_cache(self) -> EncoderCache | None:
        """Return the cache of a frozen encoder's outputs, if there is to be one, and print how much it takes."""
        config = self.config.model
        if not config.cache_encoder:
            return None
        if config.cache_variants > 1 and not self.batches.fixed_types:
            raise ValueError(
                f"cache_variants: expected 1 with a bi-encoder, got {config.cache_variants}; its text encoder reads no "
                "types, which vary freely"
            )
        folder = self.output / CACHE_FOLDER if config.cache_dir is None else user_path(config.cache_dir, "cache_dir")
        cache = EncoderCache(self.model, folder, self.config.run.dtype)
        rows = self.batches.rows() * config.cache_variants
        room = check_room(cache.folder, rows * self.model.encoder.hidden_size * cache.dtype.itemsize)
        self.console.print(room)
        return cache

    def _prepare_tuning(self) -> None:
        """Load the sets of zero-shot F1, annotate the sentences of replay_data, and add the adapters."""
        config, base = self.config, self.config.model.init_from
        self.lora: Lora | None = None
        self.zero_shot: dict[str, Dataset] = {}
        if base is None:
            return
        self.zero_shot = zero_shot_sets(config, self.data.held_out, self.model.config.words_splitter_type)
        for name, dataset in self.zero_shot.items():
            check_evaluation(name, dataset, self.model.packer)
        if config.tuning.replay_data:
            replay = replayed(config, self.load_base(), len(self.train_set))
            self.train_set = join([self.train_set, replay])
        if config.tuning.lora_rank is not None:
            self.lora = Lora(self.model, config.tuning, base, config.run.seed)

    def load_base(self, *, trainable: bool = False) -> GLiModern:
        """Load the checkpoint of init_from, in fp32."""
        name, splitter = self.config.model.init_from or "", self.model.config.words_splitter_type
        device = self.accelerator.device
        return GLiModern.from_pretrained(
            name, dtype="fp32", device=device, trainable=trainable, splitter=splitter
        ).eval()

    def _check_data(self, config: DataConfig) -> None:
        """Check that the data can train the model and choose a checkpoint, and that the evaluations will not fail."""
        packer, long_texts = self.model.packer, config.long_texts
        check_gold("train_data", self.train_set, packer, config, alone=True)
        if self.dev_set:
            check_evaluation("dev_data", self.dev_set, packer)
            check_gold("dev_data", self.dev_set, packer, config, alone=False)
        for dataset in self.test_sets:
            check_evaluation("eval_data", dataset, packer)
        if self.accelerator.is_main_process:
            own = own_types(self.train_set, config.max_types)
            windows = training_budgets(self.train_set, packer, config)
            self._report(self.train_set, own, prompt_budgets(own, packer), windows, long_texts)
            for dataset in [*([self.dev_set] if self.dev_set else []), *self.test_sets]:
                types = asked_types(dataset)
                budgets = group_budgets(types, packer, config.max_types)
                self._report(dataset, types, budgets, budgets, long_texts)

    def _report(
        self,
        dataset: Dataset,
        types: Sequence[Sequence[str]],
        budgets: Sequence[Budget],
        windows: Sequence[Budget],
        long_texts: LongTexts,
    ) -> None:
        """Print the report of a data set."""
        cut = count_cut(dataset, types, self.model.packer, budgets, window_budgets=windows, long_texts=long_texts)
        self.console.print(validate(dataset, self.model.packer.widest_entity, cut).table())

    def _find_progress(self) -> Progress:
        """Load the progress to resume from, if any.

        Raises ValueError for a checkpoint of a run with other settings, or with more steps than this run has.
        """
        if not self.config.run.resume:
            return Progress()
        saved = newest(self.checkpoints)
        if saved is None:
            self.console.print(f"no checkpoint under {self.checkpoints}: starting at step 0")
            return Progress()
        done = load_progress(self.accelerator, saved, self.settings)
        if done.step > self.total:
            raise ValueError(
                f"max_steps, epochs: expected at least the {done.step} steps that {saved} has done, got {self.total}"
            )
        factor = rate(done.step, self.total, self.config.optim.warmup)
        now = "training is done" if done.step == self.total else f"learning rate {factor:.2f} of its peak"
        self.console.print(f"resumed from {saved} at step {done.step} of {self.total}, {now}")
        return done

    def clip_gradient(self) -> Tensor:
        """Return the gradient's norm, and clip the gradient if it is larger than max_grad_norm.

        On a CPU, AdamW's kernel divides the gradient by the factor as it reads it, which saves a pass over the weights.
        fp16's gradient scaler uses that divisor itself.
        """
        limit, parameters = self.config.optim.max_grad_norm, list(self.model.parameters())
        if self.accelerator.device.type != "cpu" or self.config.run.dtype == "fp16":
            norm: Tensor = self.accelerator.clip_grad_norm_(parameters, limit or math.inf)
            return norm
        norm = total_norm(parameters)
        if limit:
            self.optimizer.optimizer.grad_scale = ((norm + 1e-6) / limit).clamp(min=1.0)  # as clip_grad_norm_ does
        return norm

    def where(self) -> str:
        """Describe where a stopped run stands and how to continue it."""
        done = self.done.step
        if done == 0:
            return "stopped before the first step"
        command = "the same command with --resume" + (" in place of --overwrite" if self.config.run.overwrite else "")
        return f"stopped at step {done} of {self.total}; go on with {command}"

    def save(self) -> None:
        """Write a checkpoint to resume from."""
        self._check_weights()
        save_progress(self.accelerator, self.checkpoints, self.done, self.settings)
        self.saved = self.done.step

    def save_if_due(self) -> None:
        """Write a checkpoint every checkpoint_steps, and at the end, so that the run can be extended."""
        every, step = self.config.run.checkpoint_steps, self.done.step
        if every and step > self.saved and (step % every == 0 or step == self.total):
            with self.interrupts.held():
                self.save()

    def evaluate_if_due(self) -> None:
        """Evaluate on the dev set every eval_steps and at the end, and save the model with the best micro F1 so far."""
        run, step = self.config.run, self.done.step
        due = step == self.total or (run.eval_steps and step % run.eval_steps == 0)
        if not self.dev_set or step == 0 or step == self.done.evaluated or not due:
            return
        scores = evaluate_together(
            self.accelerator,
            self.model,
            self.dev_set,
            run.threshold,
            autocast=True,
            long_texts=self.config.data.long_texts,
        )
        f1 = scores.micro.f1
        with self.interrupts.held():
            best = self.done.best_f1 is None or f1 > self.done.best_f1
            if best:
                self.save_model()
            self.done = replace(self.done, evaluated=step)
            if best:
                self.done = replace(self.done, best_f1=f1, best_step=step)
            self.log.write(step, dev_micro_f1=f1)
            self.log.bar.console.print(f"step {step}: dev micro F1 {100 * f1:.2f}")
        self.prepared.train()

    def _check_weights(self) -> None:
        """Raise FloatingPointError unless all weights are finite, so that they do not replace saved weights.

        Each step checks its loss and gradient before the weights change. This check covers the last step's change.
        """
        with together(self.accelerator, "checking the weights"):
            for name, weight in self.model.named_parameters():
                if not torch.isfinite(weight).all():
                    raise FloatingPointError(
                        f"{name}: expected finite weights after step {self.done.step}, got NaN or infinity, which are "
                        "not saved; lower lr, head_lr or weight_decay"
                    )

    def save_model(self) -> None:
        """Save the model, and its adapter, in the output folder, in place of those of an earlier run."""
        self._check_weights()
        with together(self.accelerator, "saving the model"):
            if self.accelerator.is_main_process:
                keep = self.config.tuning.keep_zero_shot
                folder = self.output / FINE_TUNED if keep else self.output
                if self.lora is not None:
                    self.lora.save(self.model, folder)
                else:
                    self.model.save_pretrained(folder / "model")
                    remove_adapter(folder / "adapter")
                if not keep:
                    remove_fine_tuned(self.output)

    def report_left_out(self) -> None:
        """Log a warning about words, entities and types that training left out, if there are any."""
        if self.words_cut or self.entities_lost or self.batches.types_left_out:
            logger.warning(
                "training left out %d words of texts that are too long, %d gold entities that are wider than %s words "
                "or beyond the part of a text that is read, and %d types of other sentences without room in the prompt",
                self.words_cut, self.entities_lost, self.model.packer.widest_entity or "any number of",
                self.batches.types_left_out,
            )  # fmt: skip

    def record_left_out(self, batch: PackedBatch) -> None:
        """Count the words and the gold entities that a batch could not hold."""
        self.words_cut += sum(batch.words_cut)
        self.entities_lost += batch.entities_lost

    def finished_step(self, seconds: float, loss: float, lr: float, words: int) -> None:
        """Update the progress after a step, and log the step."""
        self.durations.append(seconds)
        done = self.done
        self.done = replace(
            done,
            step=done.step + 1,
            batches=done.batches + self.config.run.accumulation,
            words=done.words + words,
            seconds=self.seconds_before + time.perf_counter() - self.started,
        )
        self.log.step(self.done.step, loss=loss, lr=lr, seconds=seconds, words_per_second=words / seconds)
