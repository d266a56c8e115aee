"""Numbers and names as a person reads them: sizes, durations, ages, lists. Pure functions, used by pages and API."""

import re

from markupsafe import Markup

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
JOB_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")

# How a job is called, before and while it runs. {title} is the model's title.
OPERATIONS = {
    "swap": ("Swap to {title}", "Swapping to {title}"),
    "stop_model": ("Stop {title}", "Stopping {title}"),
    "probe": ("Look at the Sparks", "Looking at the Sparks"),
    "gpu_lease": ("Reserve the GPUs", "Reserving the GPUs"),
    "download_weights": ("Download {title}", "Downloading {title}"),
    "copy_weights": ("Copy {title}", "Copying {title}"),
    "delete_weights": ("Delete {title}", "Deleting {title}"),
    "suggest_recipe": ("Look at how to launch {title}", "Looking at how to launch {title}"),
    "save_recipe": ("Save the recipe of {title}", "Saving the recipe of {title}"),
}


def size(count, unknown="unknown"):
    """Bytes -> "17 GB"; one decimal under 10 GB.

    Binary throughout, as the playbooks say it and as everybody counts memory (a Spark has 128 GB, 122 of them usable):
    weights stand beside memory, and two ways to count would stand side by side.
    """
    if count is None:
        return unknown
    value, unit = float(count), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if abs(value) < 1023.5 or unit == "TB":
            break
        value /= 1024
    text = f"{value:.1f}".removesuffix(".0") if value < 9.95 and unit in ("GB", "TB") else f"{value:.0f}"
    return f"{text} {unit}"


def duration(seconds):
    """Seconds -> "8 s", "3 min", "3 h 12 min", "2 days". Nothing more exact than a person needs."""
    seconds = max(0, int(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        minutes, rest = divmod(seconds, 60)
        return f"{minutes} min {rest} s" if minutes < 5 and rest else f"{minutes} min"
    if seconds < 48 * 3600:
        hours, minutes = seconds // 3600, seconds % 3600 // 60
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{seconds // 86400} days"


def roughly(seconds):
    """An expected duration, rounded the way one says it: "about 20 s", "about 3 min"."""
    seconds = max(1, seconds)
    if seconds < 10:
        return f"about {round(seconds)} s"
    if seconds < 55:
        return f"about {5 * round(seconds / 5)} s"
    if seconds < 3300:
        return f"about {max(1, round(seconds / 60))} min"
    return f"about {duration(seconds)}"


def left(seconds):
    """How much longer a job usually takes. app.js counts it down in the same words."""
    if seconds < -5:
        return "longer than usual"
    return "a few seconds left" if seconds < 5 else f"{roughly(seconds)} left"


def together(items):
    """["a", "b", "c"] -> "a, b and c"."""
    items = [str(item) for item in items]
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else ""


def plural(count, one, many=None):
    """(1, "request") -> "1 request", (2, "request") -> "2 requests"."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def since(epoch, now):
    """A duration that app.js keeps counting: <time data-since="EPOCH">3 h 12 min</time>."""
    if epoch is None:
        return ""
    return Markup('<time data-since="{}">{}</time>').format(int(epoch), duration(now - epoch))


def still(html):
    """The fragment without its ticking texts, to see whether anything else changed."""
    return re.sub(r'(data-(?:since|left)="\d+">)[^<]*', r"\1", html)


def said(text, before):
    """Whether a text stands in another already, whatever its first letter and its stop."""
    return text.strip().rstrip(".").lower() in before.lower()


def sentence(text):
    """Text that ends like a sentence."""
    text = (text or "").strip()
    return text if not text or text[-1] in ".!?…:" else text + "."


def name_of(operation, variables, titles, doing=False):
    """What a job is called: ("swap", {"model": "gemma"}, {"gemma": "Gemma 4"}) -> "Swap to Gemma 4"."""
    pattern = OPERATIONS.get(
        operation, (operation.replace("_", " ").capitalize(), operation.replace("_", " ").capitalize())
    )
    model = str(variables.get("model") or variables.get("repo") or variables.get("path") or "")
    title = titles.get(model) or model or "the model"
    return pattern[doing].format(title=title)


def doing(operation):
    """What is being done, in one word: "downloading"."""
    pattern = OPERATIONS.get(operation, ("", operation))[1]
    return pattern.split()[0].lower()
