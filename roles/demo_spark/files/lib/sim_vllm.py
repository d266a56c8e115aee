"""`vllm` inside a simulated container: `vllm serve MODEL [flags]` loads for a while, logs what vLLM logs, holds memory,
and then answers OpenAI's API.

How a model behaves is in demo.json beside its config.json:
    {"load_seconds": seconds|null (null = the demo's), "behaviour": "ok"|"slow"|"crash"|"mute"|"leak"}
What literally arrived (argv, environment) is in argv.json of the container's folder and of the host's.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time

from sim_containers import Container
from sim_host import ENV_CONTAINER, GIB, Host, read_json, write_atomic
from sim_loading import Failed, Loading

VERSION = "0.19.1rc1.dev86+gb6553be1b"
SWITCHES_WITHOUT_VALUE = {
    "headless",
    "enforce-eager",
    "trust-remote-code",
    "enable-auto-tool-choice",
    "enable-prefix-caching",
}
OFFLINE = (
    "OSError: We couldn't connect to 'https://huggingface.co' to load the files, "
    "and couldn't find them in the cached files.\n"
    "Check your internet connection or see how to run the library in offline mode at "
    "'https://huggingface.co/docs/transformers/installation#offline-mode'."
)


def main(host_folder, _program, arguments):
    if arguments[:1] in (["--version"], ["-v"]):
        print(VERSION)
        return 0
    if arguments[:1] != ["serve"]:
        print("usage: vllm [-h] [-v] {chat,complete,serve,bench,collect-env,run-batch} ...", file=sys.stderr)
        return 2
    host = Host(host_folder)
    container = Container(host, os.environ[ENV_CONTAINER])
    record_arguments(host, container, arguments)
    server = Server(host, container, Options([container.untranslate(word) for word in arguments[1:]]))
    signal.signal(signal.SIGTERM, lambda *_unused: os._exit(0))
    try:
        server.run()
    except Failed as failure:
        server.traceback(str(failure))
        sys.stdout.flush()
        os._exit(1)
    return 0


def record_arguments(host, container, arguments):
    environment = {
        key: container.untranslate(value) for key, value in os.environ.items() if not key.startswith("SPARK_SIM_")
    }
    text = json.dumps(
        {"argv": ["vllm", *(container.untranslate(word) for word in arguments)], "env": environment}, indent=1
    )
    write_atomic(container.path("argv.json"), text)
    write_atomic(host.path("argv.json"), text)


class Options:
    """vLLM's command line. Attributes: model (str), flags {name: [values]}."""

    def __init__(self, words):
        self.model = None
        self.flags = {}
        current = None
        for word in words:
            if word.startswith("--") and len(word) > 2:
                name, equals, value = word[2:].partition("=")
                current = name.replace("_", "-")
                self.flags[current] = [value] if equals else []
            elif word in ("-tp", "-pp", "-dp", "-tp=", "-pp=") or (
                len(word) > 1 and word[0] == "-" and word[1].isalpha()
            ):
                name, equals, value = word[1:].partition("=")
                current = {
                    "tp": "tensor-parallel-size",
                    "pp": "pipeline-parallel-size",
                    "dp": "data-parallel-size",
                    "n": "nnodes",
                    "r": "node-rank",
                }.get(name, name)
                self.flags[current] = [value] if equals else []
            elif current and current not in SWITCHES_WITHOUT_VALUE:
                self.flags[current].append(word)
            elif self.model is None:
                self.model = word
        self.model = self.text("model", self.model)

    def text(self, name, default=None):
        return (self.flags.get(name) or [default])[0]

    def number(self, name, default, kind=int):
        value = self.text(name)
        if value is None:
            return default
        try:
            return kind(value)
        except ValueError:
            sys.stderr.write(
                f"usage: vllm serve [model_tag] [options]\n"
                f"vllm serve: error: argument --{name}: invalid {kind.__name__} value: '{value}'\n"
            )
            sys.stderr.flush()
            os._exit(2)


class Server:
    """One `vllm serve`: a head (rank 0) or a headless worker."""

    def __init__(self, host, container, options):
        self.host, self.container, self.options = host, container, options
        self.rank = options.number("node-rank", 0)
        self.nodes = options.number("nnodes", 1)
        self.parallel = options.number("tensor-parallel-size", 1) * options.number("pipeline-parallel-size", 1)
        self.names = options.flags.get("served-model-name") or [options.model]
        self.utilization = options.number("gpu-memory-utilization", 0.9, float)
        self.address = self.bind_address(options.text("host"))
        self.port = options.number("port", 8000)
        self.behaviour = "ok"
        self.peers = []
        self.held = 0

    def bind_address(self, asked):
        # Several simulated hosts share one machine: "every address" means this host's own.
        return self.host.address if asked in (None, "", "0.0.0.0", "::") else asked

    # --- life -----------------------------------------------------------------------------------------------------

    def run(self):
        self.info("api_server.py:1351", f"vLLM API server version {VERSION}")
        self.info(
            "api_server.py:233",
            f"non-default args: {self.options.flags}",
        )
        listener = None if self.rank else self.bind()
        folder = self.find_model()
        config = read_json(os.path.join(folder, "config.json"))
        demo = self.read_demo(folder)
        self.behaviour = demo["behaviour"]
        max_len = self.max_model_len(config)
        self.info("model.py:631", f"Resolved architecture: {(config.get('architectures') or ['LlamaForCausalLM'])[0]}")
        self.info("model.py:1745", f"Using max model len {max_len}")
        self.info(
            "core.py:93",
            f"Initializing a V1 LLM engine (v{VERSION}) with config: "
            f"model='{self.options.model}', tensor_parallel_size={self.parallel}",
            core=True,
        )
        self.check_memory()
        self.rendezvous()
        Loading(self, folder, demo["load_seconds"], max_len).load()
        if self.rank:
            threading.Event().wait()
        import sim_openai

        sim_openai.serve(self, listener, max_len)

    def bind(self):
        """Take the port before the engine starts, as vLLM does; it listens once loaded."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.address, self.port))
        except OSError as error:
            raise Failed(f"OSError: [Errno {error.errno}] {error.strerror}") from None
        return listener

    def find_model(self):
        """The model's folder on the host: a path, or a Hub repo in the cache (offline). Raises Failed."""
        model = self.options.model or "Qwen/Qwen3-0.6B"
        if model.startswith(("/", "./")):
            folder = self.container.host_path(model)
            if not os.path.isfile(os.path.join(folder, "config.json")):
                raise Failed(f"OSError: {model} does not appear to have a file named config.json.")
            return folder
        home = os.environ.get("HF_HOME", "/root/.cache/huggingface")
        cache = os.path.join(
            self.container.host_path(os.environ.get("HF_HUB_CACHE", home + "/hub")),
            "models--" + model.replace("/", "--"),
        )
        try:
            with open(os.path.join(cache, "refs", self.options.text("revision", "main"))) as file:
                revision = file.read().strip()
        except FileNotFoundError:
            revision = self.options.text("revision", "main")
        folder = os.path.join(cache, "snapshots", revision)
        if not os.path.isfile(os.path.join(folder, "config.json")):
            raise Failed(OFFLINE)
        return folder

    def read_demo(self, folder):
        settings = {"load_seconds": None, "behaviour": "ok"}
        with contextlib.suppress(FileNotFoundError):
            settings.update(read_json(os.path.join(folder, "demo.json")))
        if settings["load_seconds"] is None:
            settings["load_seconds"] = read_json(os.path.join(self.host.root, "demo.json"))["load_seconds"]
            if settings["behaviour"] == "slow":
                settings["load_seconds"] *= 4
        return settings

    def max_model_len(self, config):
        text = self.options.text("max-model-len", "auto")
        own = config.get("text_config", config).get("max_position_embeddings", 32768)
        if text in ("auto", "-1"):
            return own
        scale = {"k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}.get(text[-1:], 1)
        try:
            return int(float(text.rstrip("kKmM")) * scale)
        except ValueError:
            raise Failed(f"ValueError: invalid max_model_len: {text}") from None

    def check_memory(self):
        wanted, free = self.utilization * self.host.total, self.host.refresh_memory()
        if free < wanted:
            raise Failed(
                f"ValueError: Free memory on device cuda:0 ({free / GIB:.2f}/{self.host.total / GIB:.2f} GiB) "
                "on startup is less than desired "
                f"GPU memory utilization ({self.utilization}, {wanted / GIB:.2f} GiB). "
                "Decrease GPU memory utilization or reduce GPU memory "
                "used by other processes."
            )

    def rendezvous(self):
        """Ranks of several nodes meet over TCP at the master's address; then the end of one is the end of all."""
        if self.nodes < 2:
            return
        address = self.options.text("master-addr", self.host.address)
        port = self.options.number("master-port", 29501)
        self.info(
            "parallel_state.py:1208",
            f"world_size={self.nodes} rank={self.rank} local_rank=0 "
            f"distributed_init_method=tcp://{address}:{port} backend=nccl",
            core=True,
        )
        deadline = time.monotonic() + 600
        if self.rank == 0:
            meeting = socket.create_server((address, port))
            meeting.settimeout(600)
            try:
                self.peers = [meeting.accept()[0] for _unused in range(self.nodes - 1)]
            except TimeoutError:
                raise Failed(
                    "torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients."
                ) from None
            meeting.close()
        else:
            while not self.peers:
                try:
                    self.peers = [socket.create_connection((address, port), 5)]
                    self.peers[0].settimeout(None)
                except OSError:
                    if time.monotonic() > deadline:
                        raise Failed("torch.distributed.DistNetworkError: The client socket has timed out.") from None
                    time.sleep(0.1)
        for peer in self.peers:
            threading.Thread(target=self.watch, args=(peer,), daemon=True).start()

    def watch(self, peer):
        try:
            while peer.recv(64):
                pass
        except OSError:
            pass
        self.traceback("RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:544] Connection closed by peer")
        sys.stdout.flush()
        os._exit(1)

    def hold(self, size, busy):
        """Hold that much memory, this busy (GPU %)."""
        self.held = size
        name = "VLLM::Worker" if self.rank else "VLLM::EngineCore"
        self.host.hold(os.getpid(), size, name=name, leak=self.behaviour == "leak", busy=busy)

    # --- the log --------------------------------------------------------------------------------------------------

    def prefix(self, core):
        who = "EngineCore_DP0" if core else "APIServer"
        return f"({who if not self.rank else f'Worker_TP{self.rank}'} pid={os.getpid()}) "

    def info(self, where, text, core=False, level="INFO"):
        self.raw(f"{level} {time.strftime('%m-%d %H:%M:%S')} [{where}] {text}\n", core)

    def raw(self, text, core=None):
        lead = "\r" if text.startswith("\r") else ""
        sys.stdout.write(lead + (self.prefix(core) if core is not None else "") + text.removeprefix("\r"))
        sys.stdout.flush()

    def traceback(self, last):
        """Die as an engine does: its traceback, then the API server's."""
        self.info("core.py:1099", "EngineCore failed to start.", core=True, level="ERROR")
        for line in (
            "Traceback (most recent call last):",
            '  File "/usr/local/lib/python3.12/dist-packages/vllm/v1/engine/core.py", line 1073, in run_engine_core',
            "    engine_core = EngineCoreProc(*args, engine_index=dp_rank, **kwargs)",
            '  File "/usr/local/lib/python3.12/dist-packages/vllm/v1/executor/abstract.py", line 109, in __init__',
            "    self._init_executor()",
            *last.splitlines(),
        ):
            self.info("core.py:1099", line, core=True, level="ERROR")
        self.raw("Traceback (most recent call last):\n", core=False)
        self.raw('  File "/usr/local/bin/vllm", line 10, in <module>\n', core=False)
        self.raw("    sys.exit(main())\n", core=False)
        self.raw(
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n",
            core=False,
        )
