"""`nvidia-smi` of a GB10: memory reads [N/A]; utilisation, temperature, power and who holds memory do read."""

import sys
import time

from sim_host import Host

MIB = 1 << 20


def main(host_folder, _program, arguments):
    host = Host(host_folder)
    options = {word.partition("=")[0]: word.partition("=")[2] for word in arguments}
    if host.fault("gpu-down") is not None:
        print(
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
            "Make sure that the latest NVIDIA driver is installed and running.\n"
        )
        return 9
    host.refresh_memory()
    layout = [part.strip() for part in options.get("--format", "csv").split(",")]
    if "--query-gpu" in options:
        return table(options["--query-gpu"], [gpu(host)], layout)
    if "--query-compute-apps" in options:
        return table(options["--query-compute-apps"], [process(holder) for holder in host.holders()], layout)
    if "-L" in options:
        print("GPU 0: NVIDIA GB10 (UUID: GPU-5a1d0c7e-0000-4000-8000-00000000000b)")
        return 0
    facts = gpu(host)
    print("NVIDIA-SMI 580.95.05   Driver Version: 580.95.05   CUDA Version: 13.0")
    temperature, power, busy = (facts[key][0] for key in ("temperature.gpu", "power.draw", "utilization.gpu"))
    print(f"|  0  NVIDIA GB10  {temperature}C  {power}W  {busy}%  Not Supported |")
    for holder in host.holders():
        print(f"|  0  N/A  N/A  {holder['pid']}  C  {holder['name']}  {holder['bytes'] // MIB}MiB |")
    return 0


def gpu(host):
    """Each field as (value, unit)."""
    busy = max((holder.get("busy", 0) for holder in host.holders()), default=0)
    wobble = int(time.time()) % 4
    nothing = ("[N/A]", "")
    return {
        "name": ("NVIDIA GB10", ""),
        "index": (0, ""),
        "uuid": ("GPU-5a1d0c7e-0000-4000-8000-00000000000b", ""),
        "driver_version": ("580.95.05", ""),
        "utilization.gpu": (max(busy - wobble, 0), "%"),
        "utilization.memory": (0, "%"),
        "temperature.gpu": (41 + busy * 26 // 100 + wobble % 2, ""),
        "power.draw": (f"{4.4 + busy * 0.52 + wobble * 0.21:.2f}", "W"),
        "power.limit": nothing,
        "memory.total": nothing,
        "memory.used": nothing,
        "memory.free": nothing,
        "clocks.sm": (2418 if busy else 208, "MHz"),
        "pstate": ("P0" if busy else "P8", ""),
    }


def process(holder):
    name = (holder["name"], "")
    return {
        "pid": (holder["pid"], ""),
        "used_memory": (holder["bytes"] // MIB, "MiB"),
        "used_gpu_memory": (holder["bytes"] // MIB, "MiB"),
        "process_name": name,
        "name": name,
    }


def table(query, rows, layout):
    fields = [field.strip() for field in query.split(",")]
    known = set(rows[0]) if rows else set(process({"name": "", "bytes": 0, "pid": 0}))
    for field in fields:
        if field not in known:
            print(f'Field "{field}" is not a valid field to query.\n')
            return 2
    if "noheader" not in layout:
        print(", ".join(fields))
    for row in rows:
        cells = []
        for field in fields:
            value, unit = row[field]
            cells.append(str(value) if "nounits" in layout or not unit else f"{value} {unit}")
        print(", ".join(cells))
    sys.stdout.flush()
    return 0
