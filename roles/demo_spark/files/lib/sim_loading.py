"""How a simulated model loads: how long each phase takes, what it logs (vLLM's lines) and what memory it holds."""

import os
import time

from sim_host import GIB, read_json


class Failed(Exception):
    """The server dies; the text is the traceback's last line."""


class Loading:
    """One load of `seconds`. `server` is sim_vllm.Server; load() returns when it is ready, or raises Failed."""

    def __init__(self, server, folder, seconds, max_len):
        self.server, self.folder, self.seconds, self.max_len = server, folder, seconds, max_len
        self.begin = time.monotonic()
        self.whole = server.utilization * server.host.total
        weights, self.shards = self.weights()
        self.share = weights / server.parallel

    def load(self):
        self.server.hold(0.6 * GIB, 20)
        self.until(0.08)
        self.log("gpu_model_runner.py:4721", f"Starting to load model {self.server.options.model}...")
        self.until(0.1)
        self.load_weights()
        self.compile()
        self.make_cache()
        self.capture_graphs()
        took = self.until(0.98)
        self.log("core.py:282", f"init engine (profile, create kv cache, warmup model) took {took:.2f} seconds")
        self.until(1)
        self.server.hold(self.whole, 0)

    def weights(self):
        """(bytes, number of shards) of the model. Raises Failed when a shard of the index isn't there."""
        index = os.path.join(self.folder, "model.safetensors.index.json")
        if os.path.exists(index):
            names = sorted(set(read_json(index)["weight_map"].values()))
        else:
            names = sorted(name for name in os.listdir(self.folder) if name.endswith(".safetensors"))
        if not names:
            raise Failed(f"RuntimeError: Cannot find any model weights with `{self.server.options.model}`")
        try:
            return sum(os.stat(os.path.join(self.folder, name)).st_size for name in names), len(names)
        except FileNotFoundError as error:
            path = self.server.container.untranslate(error.filename)
            raise Failed(f'FileNotFoundError: No such file or directory: "{path}"') from None

    def load_weights(self):
        server, shards = self.server, self.shards
        for done in range(shards + 1):
            elapsed = self.until(0.1 + 0.5 * done / shards)
            shown = progress(done, shards, elapsed)
            text = f"\rLoading safetensors checkpoint shards: {100 * done // shards:3d}% Completed | {shown}\n"
            server.raw(text, core=True)
            size = self.share * done / shards + 0.6 * GIB
            free = server.host.available() + server.held
            if free < size:
                raise Failed(out_of_memory(server.host.total, self.share / shards, free))
            server.hold(size, 35)
            if server.behaviour == "crash" and done >= shards / 2:
                raise Failed(out_of_memory(server.host.total, 2.37 * GIB, 1.12 * GIB))
        took = self.until(0.6)
        self.log("default_loader.py:384", f"Loading weights took {took:.2f} seconds")
        size = f"{self.share / GIB:.2f} GiB"
        self.log("gpu_model_runner.py:4804", f"Model loading took {size} memory and {took:.6f} seconds")

    def compile(self):
        self.until(0.64)
        cache = "/root/.cache/vllm/torch_compile_cache/7f1c0e5a2b/rank_0_0/backbone"
        self.log("backends.py:988", f"Using cache directory: {cache} for vLLM's torch.compile")
        took = self.until(0.68)
        self.log("backends.py:1048", f"Dynamo bytecode transform time: {took * 0.1:.2f} s")
        took = self.until(0.74)
        kept = f"Cache the graph of compile range (1, 8192) for later use, took {took * 0.2:.2f} s"
        self.log("backends.py:371", kept)
        self.log("monitor.py:34", f"torch.compile took {took * 0.3:.2f} s in total")

    def make_cache(self):
        self.until(0.78)
        room = max(self.whole - self.share - 2 * GIB, 0)
        tokens = int(room / 49152) // 16 * 16
        self.log("gpu_worker.py:423", f"Available KV cache memory: {room / GIB:.2f} GiB")
        if not tokens:
            raise Failed(
                "ValueError: No available memory for the cache blocks. "
                "Try increasing `gpu_memory_utilization` when initializing the engine."
            )
        self.log("kv_cache_utils.py:1319", f"GPU KV cache size: {tokens:,} tokens")
        concurrency = f"{tokens / self.max_len:.2f}x"
        self.log(
            "kv_cache_utils.py:1324", f"Maximum concurrency for {self.max_len:,} tokens per request: {concurrency}"
        )
        self.server.hold(self.whole, 60)

    def capture_graphs(self):
        graphs, begin = 67, time.monotonic()
        for done in (0, 11, 22, 33, 44, 55, 67):
            self.until(0.8 + 0.16 * done / graphs)
            filled = ("█" * (10 * done // graphs)).ljust(10)
            shown = f"{100 * done // graphs:3d}%|{filled}| {progress(done, graphs, time.monotonic() - begin)}"
            self.server.raw(f"\rCapturing CUDA graphs (mixed prefill-decode, PIECEWISE): {shown}", core=True)
        self.server.raw("\n")
        took = round(time.monotonic() - begin)
        self.log("gpu_model_runner.py:5246", f"Graph capturing finished in {took} secs, took 0.52 GiB")

    def until(self, fraction):
        """Wait for that part of the load; the seconds since it began."""
        time.sleep(max(self.begin + fraction * self.seconds - time.monotonic(), 0))
        return time.monotonic() - self.begin

    def log(self, where, text):
        self.server.info(where, text, core=True)


def progress(done, total, elapsed):
    """tqdm's count, times and rate."""
    if not done or elapsed <= 0:
        return f"{done}/{total} [{clock(elapsed)}<?, ?it/s]"
    rate = done / elapsed
    return f"{done}/{total} [{clock(elapsed)}<{clock((total - done) / rate)}, {rate:5.2f}it/s]"


def out_of_memory(total, wanted, free):
    return (
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {wanted / GIB:.2f} GiB. GPU 0 has a total "
        f"capacity of {total / GIB:.2f} GiB of which {free / GIB:.2f} GiB is free. "
        "Including non-PyTorch memory, this process has "
        f"{(total - free) / GIB:.2f} GiB memory in use."
    )


def clock(seconds):
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"
