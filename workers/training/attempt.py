"""The story of one attempt at a trial, from its last checkpoint, or the start, to its result."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from cryobench.conf.trial import TrialSpec
from cryobench.datasets.store.location import below
from cryobench.workers.model.build import build_model
from cryobench.workers.model.cost import multiply_adds
from cryobench.workers.model.numerics import set_numerics
from cryobench.workers.model.segmentation import SegmentationModel
from cryobench.workers.place import Place
from cryobench.workers.record.checkpoint import Progress, weights_digest
from cryobench.workers.record.events import Decoding, Finished, Note, OutOfMemory, Report
from cryobench.workers.record.folder import TrialFolder
from cryobench.workers.record.result import TestMetrics, TrialResult
from cryobench.workers.training.attempt_context import AttemptContext
from cryobench.workers.training.checkpoint_writer import CheckpointWriter
from cryobench.workers.training.device_turn import alone_on_device, sharing_device
from cryobench.workers.training.epoch import make_optimizer
from cryobench.workers.training.fitting import Fitting, Trained
from cryobench.workers.training.memory import BatchMemoryError, is_out_of_memory, micro_batches_for, release
from cryobench.workers.training.restoring import restore
from cryobench.workers.training.summary import summary
from cryobench.workers.training.testing import evaluate_test_split, keep_test, measure_test
from cryobench.workers.training.trial_data import TrialData, open_data

_REPORT_EVERY_S = 1.0


class Attempt:
    """A trial being run; the arguments are those of `AttemptContext`."""

    def __init__(
        self,
        spec: TrialSpec,
        place: Place,
        folder: TrialFolder,
        report: Report,
        should_stop: Callable[[], bool],
        after_save: Callable[[], None] = lambda: None,
    ) -> None:
        self.context = AttemptContext(spec, place, folder, report, should_stop, after_save)
        self.device = self.context.device
        self._micro_batches = 1

    def run(self) -> TrialResult:
        """Train what is left, test, and write the result.

        If memory runs out, neighbours may be why: the trial goes on from its checkpoint, in the same way, alone on its
        device. Only if a batch does not fit even then, the trial begins anew with batches in parts, so that all of it
        is made one way.
        """
        self._set_up_torch()
        data = self._open_data()
        gmacs = self._count_multiply_adds(data)
        cache_dir = self.context.place.cache_dir
        with sharing_device(cache_dir, self.device, self._keep_waiting):
            try:
                return self._go_on(data, gmacs)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
        # Out here no traceback holds what the attempt had in memory.
        self.context.record(OutOfMemory(micro_batches=self._micro_batches, goes_on=True))
        release()
        with alone_on_device(cache_dir, self.device, self._keep_waiting) as alone:
            if not alone:
                self.context.record(Note(message="Others are still on the device after the longest wait; going on."))
            try:
                return self._go_on(data, gmacs)
            except BatchMemoryError:
                parts = micro_batches_for(self.context.spec.protocol.batch_size)
                if self._micro_batches > 1 or parts == 1:
                    raise
            self._micro_batches = parts
            self.context.record(OutOfMemory(micro_batches=parts))
            self.context.checkpoints.clear()
            release()
            return self._go_on(data, gmacs)

    def retest(self) -> TestMetrics:
        """Test the best checkpoint again; nothing is written.

        Raises:
            BadCheckpointError: it is not there or damaged.
        """
        self._set_up_torch()
        data = self._open_data()
        model = self._build(data)
        model.load_trained_state(self.context.checkpoints.best())
        return measure_test(self.context, evaluate_test_split(self.context, model, data))

    def _go_on(self, data: TrialData, gmacs: float | None) -> TrialResult:
        """From the checkpoint, or from the start where there is none to go on from, to the result."""
        context = self.context
        model = self._build(data)
        optimizer = make_optimizer(model, context.spec)
        progress = restore(context, model, optimizer, len(data.sampler)) or Progress(micro_batches=self._micro_batches)
        self._micro_batches = progress.micro_batches  # a trial begun in parts stays so
        with CheckpointWriter(context.checkpoints, context.after_save) as writer:
            trained = Fitting(context, model, optimizer, data, progress, writer).run()
            return self._finish(model, data, trained, gmacs, writer)

    def _finish(
        self, model: SegmentationModel, data: TrialData, trained: Trained, gmacs: float | None, writer: CheckpointWriter
    ) -> TrialResult:
        context, progress, divergence = self.context, trained.progress, trained.divergence
        final = weights_digest(model.trained_state())
        test, best_weights = None, None
        with context.timed("checkpointing"):
            writer.wait_until_written()
        if progress.best is not None:
            model.load_trained_state(context.checkpoints.best())
            best_weights = weights_digest(model.trained_state())
            found = evaluate_test_split(context, model, data)
            test = measure_test(context, found)
            keep_test(context, found, data)
            if not found.finite and divergence is None:
                divergence = "The best model's outputs on test are infinite or no numbers."
        result = summary(
            context,
            data,
            model,
            progress,
            diverged=divergence,
            final_weights=final,
            best_weights=best_weights,
            test=test,
            gmacs=gmacs,
        )
        with context.timed("checkpointing"):
            writer.flush()  # an upload reads the files that are removed below
        context.folder.write_result(result)
        context.checkpoints.drop_latest()
        context.record(Finished(status=result.status))
        return result

    def _build(self, data: TrialData) -> SegmentationModel:
        spec = self.context.spec
        model = build_model(spec, len(data.info.classes), self.context.place.weights_dir).to(self.device)
        if spec.protocol.compile:
            model.compile()
        return model

    def _count_multiply_adds(self, data: TrialData) -> float | None:
        """10^9 multiply-adds for one crop. A figure beside the result: failing to count it never costs the trial."""
        try:
            return multiply_adds(self.context.spec, len(data.info.classes), data.window("train"))
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            self.context.record(Note(message=f"The model's multiply-adds could not be counted ({reason})."))
            return None

    def _set_up_torch(self) -> None:
        protocol = self.context.spec.protocol
        torch.set_num_threads(protocol.cpu_threads)
        set_numerics(protocol.precision, protocol.deterministic)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _keep_waiting(self) -> None:
        self.context.leave_if_asked("waiting for the device")

    def _open_data(self) -> TrialData:
        """The trial's data, with news of what takes long."""
        context, last_report = self.context, 0.0

        def decoding(done: int, total: int) -> None:
            nonlocal last_report
            if done == total or time.monotonic() - last_report > _REPORT_EVERY_S:
                last_report = time.monotonic()
                context.report(Decoding(decoded=done, tiles=total))

        with context.timed("data"):
            place = context.place
            data = open_data(
                context.spec,
                below(place.data_dir, f"{context.spec.dataset.name}.zarr"),
                place.cache_dir,
                place.resources,
                decoding,
                lambda text: context.record(Note(message=text)),
            )
            data.preprocess.to(self.device)
        return data
