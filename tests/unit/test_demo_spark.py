"""The simulated Sparks behave as real ones do: containers, launcher, memory, faults, stop and start."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import wait_for

PROJECT = Path(__file__).resolve().parents[2]
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"
LOAD_SECONDS = 0.6
GIB = 1 << 30


class Demo:
    """A demo root of its own on a network of its own."""

    def __init__(self, root, network):
        self.root, self.network = root, network
        self.env = {
            "PATH": f"{PLAYBOOK.parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(root.parent),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_LOCAL_TEMP": str(root.parent / "ansible"),
            "ANSIBLE_REMOTE_TEMP": str(root.parent / "ansible"),
            "SPARK_DEMO_ROOT": str(root),
            "SPARK_DEMO_NETWORK": network,
        }

    def playbook(self, **variables):
        """Run playbooks/demo.yml; (changed, failed) over all hosts."""
        check = ["--check"] if variables.pop("check", False) else []
        words = [PLAYBOOK, "-i", PROJECT / "inventory/demo", PROJECT / "playbooks/demo.yml", *check]
        for key, value in {"demo_spark_load_seconds": LOAD_SECONDS, **variables}.items():
            words += ["-e", f"{key}={value}"]
        env = {**self.env, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"}
        done = subprocess.run(words, env=env, cwd=PROJECT, capture_output=True, text=True, timeout=120)
        recap = done.stdout.partition("PLAY RECAP")[2]
        assert recap, done.stdout + done.stderr
        return tuple(sum(map(int, re.findall(rf"{word}=(\d+)", recap))) for word in ("changed", "failed"))

    def environment(self, host="spark1"):
        folder = self.root / host
        return {"PATH": f"{folder}/bin:/usr/local/bin:/usr/bin:/bin", "HOME": f"{folder}/home"}

    def run(self, *words, host="spark1", env=None, **options):
        environment = {**self.environment(host), **(env or {})}
        return subprocess.run(
            list(map(str, words)), env=environment, capture_output=True, text=True, timeout=60, **options
        )

    def docker(self, *words, host="spark1"):
        return self.run("docker", *words, host=host)

    def launch(self, *words, host="spark1", env=None):
        return self.run(self.root / host / "home/spark-vllm-docker/launch-cluster.sh", *words, host=host, env=env)

    def serve(self, model, *flags, launcher=("--solo",)):
        words = ["vllm", "serve", model, "--served-model-name", "m", "--host", "0.0.0.0", "--port", "8888", *flags]
        done = self.launch(*launcher, "-d", "exec", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def available(self, host="spark1"):
        """MemAvailable in bytes."""
        for line in (self.root / host / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no MemAvailable")

    def http(self, path, body=None, host="11", timeout=10):
        """(status, text); status 0 when nobody listens."""
        data = None if body is None else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.network}.{host}:8888{path}", data)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except urllib.error.URLError:
            return 0, ""

    def up(self):
        wait_for(lambda: self.http("/health")[0] == 200, what="the model serves")

    def log(self, host="spark1"):
        return self.docker("logs", "vllm_node", host=host).stdout

    def argv(self, host="spark1"):
        return json.loads((self.root / host / "argv.json").read_text())["argv"]

    def processes(self):
        """Pids of everything that belongs to this root."""
        tag = f"SPARK_SIM_ROOT={self.root}\0".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if tag in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    def clear(self):
        for host in ("spark1", "spark2"):
            for fault in (self.root / host / "faults").iterdir():
                fault.unlink()
            for name in self.docker("ps", "-aq", host=host).stdout.split():
                self.docker("rm", "-f", name, host=host)


def holders(folder):
    """Pids of who has that folder open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(link) == str(folder):
                found.add(int(link.parts[2]))
    return found


@pytest.fixture(scope="module")
def laid(tmp_path_factory):
    # pytest-xdist's workers each have a network of their own.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    root = tmp_path_factory.mktemp("demo") / "root"
    demo = Demo(root, f"127.77.{100 + zlib.crc32(f'{worker}{os.getpid()}'.encode()) % 150}")
    assert demo.playbook() == (2, 0)
    yield demo
    assert demo.playbook(demo_spark_state="absent")[1] == 0
    assert not root.exists()
    assert demo.processes() == []


@pytest.fixture
def demo(laid):
    yield laid
    laid.clear()


def test_a_model_is_launched_answers_and_goes(demo):
    free = demo.available()
    demo.serve("demo/second", "--gpu-memory-utilization", "0.5")
    assert demo.http("/health")[0] == 0, "nobody listens while the model loads"
    demo.up()
    status, text = demo.http(
        "/v1/chat/completions",
        {
            "model": "m",
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 4,
            "messages": [{"role": "user", "content": "hello there"}],
        },
    )
    events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert status == 200
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert (
        "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == "You said: hello there"
    )
    assert chunks[-1]["usage"]["completion_tokens"] == 4
    assert demo.available() < free - 50 * GIB
    log = demo.log()
    for line in (
        "Loading safetensors checkpoint shards: 100% Completed | 2/2",
        "Application startup complete.",
        "Graph capturing finished in",
        "GPU KV cache size:",
    ):
        assert line in log
    smi = demo.run("nvidia-smi", "--query-compute-apps=pid,used_memory,name", "--format=csv,noheader,nounits").stdout
    assert smi.split(", ")[2].strip() == "VLLM::EngineCore"
    assert demo.docker("rm", "-f", "vllm_node").stdout == "vllm_node\n"
    assert demo.available() == free
    gone = demo.docker("rm", "-f", "vllm_node")
    assert (gone.returncode, gone.stderr.strip()) == (1, "Error response from daemon: No such container: vllm_node")


def test_the_servers_errors_are_openais(demo):
    demo.serve("demo/second", "--gpu-memory-utilization", "0.3")
    demo.up()
    message = [{"role": "user", "content": "hi"}]
    status, text = demo.http("/v1/chat/completions", {"model": "other", "messages": message})
    assert (status, json.loads(text)["error"]["type"]) == (404, "NotFoundError")
    assert demo.http("/v1/chat/completions", "{broken")[0] == 400
    card = json.loads(demo.http("/v1/models")[1])["data"][0]
    assert (card["id"], card["root"], card["max_model_len"]) == ("m", "demo/second", 32768)
    whole = json.loads(demo.http("/v1/chat/completions", {"model": "m", "messages": message})[1])
    assert whole["choices"][0]["message"]["content"].startswith("You said: hi")
    assert 'vllm:num_requests_running{engine="0",model_name="m"} 0.0' in demo.http("/metrics")[1]


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
PARSES = ("--gpu-memory-utilization", "0.3", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")


def refusal(demo, path="/v1/chat/completions", **body):
    """(status, param, message) of a request that is refused in vLLM's shape."""
    status, text = demo.http(path, {"messages": [{"role": "user", "content": "weather"}], **body})
    error = json.loads(text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return status, error["param"], error["message"]


def test_tool_calls_that_nobody_parses_are_refused_in_vllms_words(demo):
    demo.serve("demo/second", "--gpu-memory-utilization", "0.3")
    demo.up()
    needs = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    assert refusal(demo, tools=[TOOL]) == refusal(demo, tools=[TOOL], tool_choice="auto") == (400, None, needs)
    status, _, message = refusal(demo, tools=[TOOL], tool_choice="required")
    assert (status, message) == (400, 'tool_choice="required" requires --tool-call-parser to be set')
    asked = {"messages": [{"role": "user", "content": "weather"}], "tools": [TOOL], "tool_choice": "none"}
    assert json.loads(demo.http("/v1/chat/completions", asked)[1])["choices"][0]["finish_reason"] == "stop"
    # The Responses API refuses none of it; its model just does not call.
    asked = {"input": "weather", "tools": [{"type": "function", **TOOL["function"]}]}
    assert json.loads(demo.http("/v1/responses", asked)[1])["output"][0]["type"] == "message"


@pytest.mark.parametrize(
    ("kind", "properties", "wanted"),
    [
        (
            "words after its name",
            {"city": {"type": "string"}, "days": {"type": "integer"}},
            {"city": "New York", "days": 3},
        ),
        ("the last word", {"place": {"type": ["string", "null"]}}, {"place": "3"}),
        ("a choice", {"unit": {"enum": ["c", "f"]}, "warm": {"type": "boolean"}}, {"unit": "c", "warm": True}),
        ("what pydantic writes", {"height": {"anyOf": [{"type": "number"}, {"type": "null"}]}}, {"height": 3}),
        ("no simple one", {"a": {"type": "array"}, "needed": {"type": "object"}}, {"needed": {}}),
    ],
)
def test_a_tools_arguments_fit_its_schema(kind, properties, wanted, monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "roles/demo_spark/files/lib")
    from sim_model import arguments

    schema = {"type": "object", "properties": properties, "required": ["needed"]}
    assert arguments(schema, "weather, please: city New York; days: 3?") == wanted, kind


def test_malformed_tools_and_responses_that_are_kept(demo):
    demo.serve("demo/second", *PARSES, launcher=("--solo", "-e", "VLLM_ENABLE_RESPONSES_API_STORE=1"))
    demo.up()
    for body, parameter, says in (
        ({"tools": []}, "tools", "must not be an empty array"),
        ({"tools": "weather"}, "tools", "valid list"),
        ({"tools": ["weather"]}, "tools", "('body', 'tools', 0)"),
        ({"tools": [{"type": "function"}]}, "tools", "('body', 'tools', 0, 'function')"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools", "('body', 'tools', 0, 'function', 'name')"),
        ({"tools": [TOOL], "tool_choice": "perhaps"}, "tool_choice", "Invalid value for `tool_choice`: perhaps!"),
        ({"tools": [TOOL], "tool_choice": {"function": "weather"}}, "tool_choice.function", "Correct usage"),
        ({"tool_choice": "auto"}, "tool_choice", "`tools` must be set"),
    ):
        status, told, message = refusal(demo, **body)
        assert (status, told) == (400, parameter), body
        assert says in message
    assert refusal(demo, "/v1/responses")[:2] == (400, "input")
    assert refusal(demo, "/v1/responses", input="x", tools=[{"type": "function"}])[:2] == (400, "tools")

    def respond(path="", **body):
        return json.loads(demo.http(f"/v1/responses{path}", body or None)[1])

    first = respond(input="Hello")
    assert respond(f"/{first['id']}") == first
    assert respond(input="And then?", previous_response_id=first["id"])["previous_response_id"] == first["id"]
    left_out = respond(input="Hello", store=False)
    for path in (f"/v1/responses/{left_out['id']}", "/v1/responses/resp_none"):
        assert demo.http(path)[0] == 404
    status, _, message = refusal(demo, f"/v1/responses/{first['id']}/cancel")
    assert (status, message) == (400, "Cannot cancel a synchronous response.")
    queued = respond(input="word " * 2000, background=True)
    assert (queued["status"], queued["output"]) == ("queued", [])
    assert respond(f"/{queued['id']}/cancel", id=queued["id"])["status"] == "cancelled"
    assert respond(f"/{queued['id']}")["status"] == "cancelled"
    wait_for(lambda: 'running{engine="0",model_name="m"} 0.0' in demo.http("/metrics")[1], what="nobody works on it")
    short = respond(input="Hello", background=True)
    wait_for(lambda: respond(f"/{short['id']}")["status"] == "completed", what="the answer")


HOSTILE = [
    "a b",
    '"; rm -rf ~',
    "$(id)",
    "`id`",
    "{{x}}",
    "line\nbreak",
    "ünï ☃",
    "/workspace/x",
    ">> /proc/1/fd/1",
    "'",
]


def test_hostile_arguments_arrive_literally(demo):
    demo.serve("demo/second", "--gpu-memory-utilization", "0.3", "--hf-overrides", *HOSTILE)
    wait_for(lambda: (demo.root / "spark1/argv.json").exists() and demo.argv()[-1] == "'", what="argv is recorded")
    assert demo.argv()[-len(HOSTILE) :] == HOSTILE


def test_nothing_of_the_caller_reaches_a_container(demo):
    env = {
        "ANSIBLE_SECRET": "1",
        "SPARK_CONTROL_JOB": "1",
        "VLLM_SPARK_EXTRA_DOCKER_ARGS": "--label model=m -e EXTRA=1",
    }
    demo.launch("--solo", "-d", "-e", "GIVEN=2", "exec", "vllm", "serve", "demo/second", env=env)
    facts = json.loads(demo.docker("inspect", "--type", "container", "vllm_node").stdout)[0]
    assert facts["Name"] == "/vllm_node"
    assert facts["Config"]["Labels"] == {"model": "m"}
    assert facts["State"]["Running"] is True
    environment = Path(f"/proc/{facts['State']['Pid']}/environ").read_text()
    assert "EXTRA=1" in environment
    assert "GIVEN=2" in environment
    assert "ANSIBLE_" not in environment
    assert "SPARK_CONTROL_" not in environment


def test_a_container_survives_its_caller(demo):
    word = "docker run -d --rm --name kept vllm-node sleep infinity && docker exec -d kept sleep 600 && sleep 600"
    caller = subprocess.Popen(
        ["bash", "-c", word], env=demo.environment(), start_new_session=True, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: "sleep 600" in demo.docker("top", "kept", "-eo", "pid,args").stdout, what="the exec runs")
    os.killpg(caller.pid, signal.SIGKILL)
    caller.wait()
    assert "sleep 600" in demo.docker("top", "kept", "-eo", "pid,args").stdout
    assert demo.docker("ps", "--format", "{{.Names}}").stdout == "kept\n"


def test_stop_burns_its_grace(demo):
    demo.docker("run", "-d", "--rm", "--name", "slow", "vllm-node", "sleep", "infinity")
    begin = time.monotonic()
    assert demo.docker("stop", "-t", "1", "slow").returncode == 0
    assert time.monotonic() - begin >= 1
    assert demo.docker("ps", "-aq").stdout == ""


def test_a_crash_leaves_the_container_up_and_gives_the_memory_back(demo):
    free = demo.available()
    demo.serve("demo/crashes-half-way")
    wait_for(lambda: "Engine core initialization failed" in demo.log(), what="the crash")
    wait_for(lambda: "vllm serve" not in demo.docker("top", "vllm_node").stdout, what="the server is gone")
    assert demo.docker("ps", "--format", "{{.Names}}").stdout == "vllm_node\n"
    assert "torch.OutOfMemoryError" in demo.log()
    wait_for(lambda: demo.available() == free, what="the memory is back")


def test_memory_comes_back_however_a_server_ends(demo):
    free = demo.available()
    demo.serve("demo/second", "--gpu-memory-utilization", "0.5")
    demo.up()
    smi = demo.run("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits").stdout
    os.kill(int(smi.split(",")[0]), signal.SIGKILL)
    wait_for(lambda: demo.available() == free, what="the memory is back", seconds=5)


def test_too_little_memory_is_vllms_own_error(demo):
    demo.serve("demo/second", "--gpu-memory-utilization", "0.99")
    wait_for(lambda: "is less than desired GPU memory utilization (0.99, " in demo.log(), what="the error")


def test_a_leak_stays_until_it_is_cleared(demo):
    free = demo.available()
    demo.serve("demo/leaks-memory", "--gpu-memory-utilization", "0.5")
    demo.up()
    demo.docker("rm", "-f", "vllm_node")
    leaked = demo.root / "spark1/faults/leaked"
    wait_for(leaked.exists, what="the leak is noted")
    assert demo.available() < free - 50 * GIB
    leaked.unlink()
    wait_for(lambda: demo.available() == free, what="the memory is back", seconds=5)


def test_a_mute_model_is_healthy_and_never_answers(demo):
    demo.serve("demo/never-answers", "--gpu-memory-utilization", "0.3")
    demo.up()
    assert demo.http("/v1/models")[0] == 200
    with pytest.raises(TimeoutError):
        demo.http("/v1/completions", {"prompt": "hi"}, timeout=0.5)


def test_weights_that_are_not_there(demo):
    demo.serve("demo/nowhere")
    wait_for(lambda: "couldn't find them in the cached files" in demo.log(), what="the error")


def test_two_nodes_serve_together_and_fall_together(demo):
    nodes = ("-n", f"{demo.network}.11,{demo.network}.12")
    done = demo.serve("demo/pair", "-tp", "2", "--gpu-memory-utilization", "0.5", launcher=nodes)
    assert "Docker image consistency check passed." in done.stdout
    demo.up()
    assert demo.argv("spark2")[-7:] == [
        "--node-rank",
        "1",
        "--master-addr",
        f"{demo.network}.11",
        "--master-port",
        "29501",
        "--headless",
    ]
    assert demo.available("spark2") < 70 * GIB
    demo.docker("rm", "-f", "vllm_node", host="spark2")
    wait_for(lambda: demo.http("/health")[0] == 0, what="the head follows its worker")


def test_a_worker_without_weights_says_so(demo):
    nodes = ("-n", f"{demo.network}.11,{demo.network}.12")
    demo.serve("demo/only-on-spark1", "-tp", "2", "--gpu-memory-utilization", "0.5", launcher=nodes)
    wait_for(lambda: "OSError" in demo.log("spark2"), what="the worker's error")


def test_a_launch_script_runs_as_written(demo, tmp_path):
    script = tmp_path / "serve.sh"
    script.write_text(
        "#!/bin/bash\nexport NAME='two words'\n"
        'vllm serve demo/second --served-model-name "$NAME" \\\n  --gpu-memory-utilization 0.3\n'
    )
    assert demo.launch("--solo", "-d", "--launch-script", script).returncode == 0
    wait_for(lambda: (demo.root / "spark1/argv.json").exists() and "two words" in demo.argv(), what="the script ran")


def test_an_existing_container_skips_the_launch(demo):
    demo.serve("demo/second", "--gpu-memory-utilization", "0.3")
    assert "Skipping launch" in demo.serve("demo/second", "--gpu-memory-utilization", "0.3").stdout


def test_help_exits_1_and_tells_the_shape(demo):
    help_text = demo.launch("--help")
    assert help_text.returncode == 1
    assert "--solo" in help_text.stdout
    assert "--launch-script" in help_text.stdout


@pytest.mark.parametrize(
    ("fault", "words", "code", "said"),
    [
        ("docker-down", ["ps"], 1, "Cannot connect to the Docker daemon"),
        ("image-missing", ["run", "-d", "vllm-node"], 125, "Unable to find image 'vllm-node:latest' locally"),
        ("image-missing", ["image", "inspect", "vllm-node"], 1, "No such image: vllm-node:latest"),
    ],
)
def test_faults(demo, fault, words, code, said):
    (demo.root / "spark1/faults" / fault).touch()
    done = demo.docker(*words)
    (demo.root / "spark1/faults" / fault).unlink()
    assert done.returncode == code
    assert said in done.stderr


def test_a_stop_that_is_refused(demo):
    demo.docker("run", "-d", "--rm", "--name", "sticky", "vllm-node")
    fault = demo.root / "spark1/faults/rm-refuses"
    fault.touch()
    assert demo.docker("rm", "-f", "sticky").returncode == 0
    assert demo.docker("ps", "--format", "{{.Names}}").stdout == "sticky\n"
    conflict = demo.docker("run", "-d", "--rm", "--name", "sticky", "vllm-node")
    assert (conflict.returncode, "is already in use by container" in conflict.stderr) == (125, True)
    fault.unlink()


def test_ssh_reaches_the_other_spark_only(demo):
    there = demo.run("ssh", "-o", "BatchMode=yes", f"{demo.network}.12", "echo $HOME")
    assert there.stdout.strip() == str(demo.root / "spark2/home")
    nowhere = demo.run("ssh", f"{demo.network}.99", "true")
    assert (nowhere.returncode, "Connection refused" in nowhere.stderr) == (255, True)


def test_the_playbook_repeats_previews_stops_and_starts_again(demo):
    assert demo.playbook() == (0, 0)
    demo.serve("demo/second", "--gpu-memory-utilization", "0.3")
    demo.up()
    identifier = demo.docker("ps", "-q").stdout
    assert demo.playbook(demo_spark_state="stopped", check=True) == (2, 0)
    assert demo.http("/health")[0] == 200, "a preview stops nothing"
    assert demo.playbook(demo_spark_state="stopped") == (2, 0)
    assert demo.processes() == []
    assert demo.playbook(demo_spark_state="stopped") == (0, 0)
    assert demo.playbook() == (2, 0)
    demo.up()
    assert demo.docker("ps", "-q").stdout == identifier
    assert demo.playbook() == (0, 0)


def test_a_folder_that_is_no_demo_root_is_left_alone(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/thesis.txt").write_text("precious")
    demo = Demo(tmp_path / "root", "127.77.99")
    assert demo.playbook(demo_spark_state="absent") == (0, 2)
    assert demo.playbook() == (0, 2)
    assert os.listdir(tmp_path / "root") == ["thesis.txt"]


def test_a_root_that_the_other_host_is_just_making_is_waited_for(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    demo = Demo(root, f"127.78.{50 + os.getpid() % 200}")
    other = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        (root / ".spark-demo.new").write_text("The simulated Sparks")
        with ThreadPoolExecutor(1) as pool:
            laid = pool.submit(demo.playbook)
            wait_for(lambda: len(holders(root) - {os.getpid()}) == 2, what="both hosts wait")
            (root / ".spark-demo.new").rename(root / ".spark-demo")
            fcntl.flock(other, fcntl.LOCK_UN)
            assert laid.result() == (2, 0)
    finally:
        os.close(other)
        demo.playbook(demo_spark_state="absent")
    assert not root.exists()


def test_the_launcher_of_january_stays_in_the_foreground_and_cleans_up(tmp_path):
    demo = Demo(tmp_path / "root", f"127.77.{50 + os.getpid() % 40}")
    try:
        assert demo.playbook(demo_spark_launcher="january") == (2, 0)
        script = demo.root / "spark1/home/spark-vllm-docker/launch-cluster.sh"
        assert "--solo" not in demo.launch("--help").stdout
        words = ["-n", f"{demo.network}.11", "exec", "vllm", "serve", "demo/second", "--port", "8888"]
        launcher = subprocess.Popen(
            [script, *words],
            env=demo.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        demo.up()
        assert launcher.poll() is None
        pid = demo.run("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader").stdout.strip()
        os.kill(int(pid), signal.SIGKILL)
        assert launcher.wait(30) is not None
        assert demo.docker("ps", "-aq").stdout == ""
    finally:
        demo.playbook(demo_spark_state="absent")
    assert demo.processes() == []
