"""Combines single requests into batches for a function of arrays."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mch_jax import batched


class Batcher:
    """Combines single examples into batches for a function of arrays.

    Examples that arrive while a batch runs wait and make up the next batch. If nothing runs, the
    first example waits up to `max_wait` for further ones. The function is compiled for a few batch
    sizes only; a batch is padded to the next of them.

    Args:
      run: A function from an array [b ...] to arrays [b ...].
      sizes: Batch sizes, ascending.
      max_wait: Maximum time in seconds that the first example of a batch waits for further ones.
      on_batch: Called with the number of examples in each batch.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray], Sequence[np.ndarray]],
        sizes: Sequence[int] = (1, 2, 4, 8, 16),
        max_wait: float = 0.004,
        on_batch: Callable[[int], Any] = lambda count: None,
    ):
        self._run, self._sizes, self._max_wait, self._on_batch = run, sizes, max_wait, on_batch
        self._queue: asyncio.Queue = asyncio.Queue()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._task: asyncio.Task | None = None

    def warm_up(self, example: np.ndarray) -> None:
        """Compiles the function for every batch size."""
        for size in self._sizes:
            self._run(np.repeat(example[None], size, 0))

    def start(self) -> None:
        """Starts to process examples, in the running event loop."""
        self._task = asyncio.create_task(self._serve())

    async def stop(self) -> None:
        """Processes the examples that were submitted, then stops."""
        await self._queue.join()
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._pool.shutdown()

    async def submit(self, example: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns the function's results for one example, or raises the function's error."""
        future = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((example, future))
        return await future

    async def _next_batch(self) -> list[tuple[np.ndarray, asyncio.Future]]:
        """Waits for examples; returns them with the futures of their results."""
        waiting = [await self._queue.get()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._max_wait):
                while len(waiting) < self._sizes[-1]:
                    waiting.append(await self._queue.get())
        return waiting

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            waiting = await self._next_batch()
            wanted = [(example, future) for example, future in waiting if not future.done()]
            try:
                if wanted:
                    batch = np.stack([example for example, _ in wanted])
                    results = await loop.run_in_executor(self._pool, self._run_padded, batch)
                    self._on_batch(len(batch))
                    for row, (_, future) in enumerate(wanted):
                        if not future.done():
                            future.set_result(tuple(result[row] for result in results))
            except Exception as error:  # noqa: BLE001  passed on to the callers of submit
                for _, future in wanted:
                    if not future.done():
                        future.set_exception(error)
            finally:
                for _ in waiting:
                    self._queue.task_done()

    def _run_padded(self, batch: np.ndarray) -> Sequence[np.ndarray]:
        size = next(size for size in self._sizes if size >= len(batch))
        return batched.apply(self._run, batch, size)
