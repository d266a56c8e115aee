"""OpenAI's Responses API as vLLM serves it: one response, streamed or not, in the background, kept or not.

Shapes and refusals are from vLLM's entrypoints/openai/responses: protocol.py, serving.py, streaming_events.py.
"""

import json
import threading
import time

from sim_model import Refused, Reply, Tools, checked_limit, count, functions_of, named, unique, wrong

NOT_KEPT = (
    "This vLLM engine does not support `store=True` and therefore does not support the background mode. To enable "
    "these features, set the environment variable `VLLM_ENABLE_RESPONSES_API_STORE=1` when launching the vLLM server."
)


class Response:
    """What a request gets. `messages` is the conversation that it answers. Raises Refused.

    status: "queued", "in_progress", "cancelled", or of its end "completed" or "incomplete".
    """

    def __init__(self, request, engine):
        self.id, self.created, self.request = f"resp_{unique()}", int(time.time()), request
        new = conversation(request)
        tools = response_tools(request)
        limit = checked_limit(request.get("max_output_tokens"))
        keeps = request.get("store", True)
        self.background = bool(request.get("background"))
        if self.background and not keeps:
            raise Refused("background can only be used when `store` is true")
        self.model = engine.model_of(request)
        if self.background and engine.kept is None:
            raise Refused(NOT_KEPT, "background", kind="invalid_request_error")
        # Unlike a chat, vLLM refuses no tools here that it does not parse: the model is told of them and that is all.
        tools = tools if engine.parses_tools else Tools({}, "none")
        self.messages = self.before(request.get("previous_response_id"), engine) + new
        self.reply = Reply(self.messages, tools, limit)
        self.tokens, self.prompt_tokens = self.reply.tokens, count(self.messages)
        self.limit = limit or engine.max_len - self.prompt_tokens
        self.status = "queued" if self.background else "in_progress"
        self.cancelled = threading.Event()
        self.item_id, self.call_id = ("fc_" if self.reply.name else "msg_") + unique(), f"call_{unique()}"
        if keeps and engine.kept is not None:
            engine.kept[self.id] = self

    @staticmethod
    def before(name, engine):
        """The conversation of an earlier response and its answer."""
        if name is None:
            return []
        earlier = (engine.kept or {}).get(name)
        if earlier is None:
            raise Response.absent(name)
        said = [] if earlier.reply.name else [{"role": "assistant", "content": earlier.reply.text}]
        return earlier.messages + said

    @staticmethod
    def absent(name):
        """The Refused of a response that is not kept."""
        return Refused(f"Response with id '{name}' not found.", "response_id", 404, "invalid_request_error")

    # --- its end --------------------------------------------------------------------------------------------------

    def whole(self):
        """Its JSON once every token is there."""
        if not self.cancelled.is_set():
            self.status = "incomplete" if self.reply.reason == "length" else "completed"
        return self.state()

    def run(self, engine):
        """Work on it in the background; it is told as queued until it ends, as in vLLM."""
        engine.count(running=1, prompt=self.prompt_tokens)
        if engine.mute:
            self.cancelled.wait()
        for _unused in self.tokens:
            engine.pace()
            if self.cancelled.is_set():
                break
        else:
            self.whole()
            engine.count(finished=1)
        engine.count(running=-1)

    def cancel(self):
        """Stop working on it. Raises Refused."""
        if self.status != "queued":
            raise Refused("Cannot cancel a synchronous response.", "response_id", kind="invalid_request_error")
        self.status = "cancelled"
        self.cancelled.set()

    # --- JSON -----------------------------------------------------------------------------------------------------

    def state(self):
        """Its JSON as of now."""
        over, ask = self.status in ("completed", "incomplete"), self.request.get
        return {
            "id": self.id,
            "created_at": self.created,
            "incomplete_details": {"reason": "max_output_tokens"} if self.status == "incomplete" else None,
            "instructions": ask("instructions"),
            "metadata": ask("metadata"),
            "model": self.model,
            "object": "response",
            "output": [self.item("completed", self.reply.text)] if over else [],
            "parallel_tool_calls": ask("parallel_tool_calls", True),
            "temperature": ask("temperature", 1.0),
            "tool_choice": ask("tool_choice", "auto"),
            "tools": ask("tools", []),
            "top_p": ask("top_p", 1.0),
            "background": self.background,
            "max_output_tokens": self.limit,
            "max_tool_calls": ask("max_tool_calls"),
            "previous_response_id": ask("previous_response_id"),
            "prompt": None,
            "reasoning": ask("reasoning"),
            "service_tier": ask("service_tier", "auto"),
            "status": self.status,
            "text": ask("text"),
            "top_logprobs": None,
            "truncation": ask("truncation", "disabled"),
            "usage": self.usage() if over else None,
            "user": ask("user"),
            "input_messages": None,
            "output_messages": None,
        }

    def usage(self):
        cached = {"cached_tokens": 0, "input_tokens_per_turn": [], "cached_tokens_per_turn": []}
        reasoned = {"reasoning_tokens": 0, "tool_output_tokens": 0, "output_tokens_per_turn": []}
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": cached,
            "output_tokens": len(self.tokens),
            "output_tokens_details": {**reasoned, "tool_output_tokens_per_turn": []},
            "total_tokens": self.prompt_tokens + len(self.tokens),
        }

    def item(self, status, text):
        """The one item of its output: a message, or the call of a function."""
        if self.reply.name:
            called = {"type": "function_call", "call_id": self.call_id, "name": self.reply.name, "arguments": text}
            return {"id": self.item_id, "status": status, **called}
        parts = [self.part(text)] if status == "completed" else []
        return {"id": self.item_id, "type": "message", "role": "assistant", "status": status, "content": parts}

    @staticmethod
    def part(text):
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": None}

    # --- the stream -----------------------------------------------------------------------------------------------

    def stream(self, pace):
        """The stream's text; `pace` is called once a token. It has no [DONE]."""
        for number, (kind, more) in enumerate(self.events(pace)):
            event = {"type": f"response.{kind}", "sequence_number": number, **more}
            yield f"event: response.{kind}\ndata: {json.dumps(event, separators=(',', ':'))}\n\n"

    def events(self, pace):
        yield "created", {"response": self.state()}
        yield "in_progress", {"response": self.state()}
        here = {"output_index": 0, "item_id": self.item_id}
        yield "output_item.added", {"output_index": 0, "item": self.item("in_progress", "")}
        if self.reply.name:
            for token in self.tokens:
                pace()
                yield "function_call_arguments.delta", {**here, "delta": token}
            done = {**here, "name": self.reply.name, "arguments": self.reply.text}
            yield "function_call_arguments.done", done
        else:
            here["content_index"] = 0
            yield "content_part.added", {**here, "part": self.part("")}
            for token in self.tokens:
                pace()
                yield "output_text.delta", {**here, "delta": token, "logprobs": []}
            yield "output_text.done", {**here, "text": self.reply.text, "logprobs": []}
            yield "content_part.done", {**here, "part": self.part(self.reply.text)}
        yield "output_item.done", {"output_index": 0, "item": self.item("completed", self.reply.text)}
        yield "completed", {"response": self.whole()}


# --- the request ------------------------------------------------------------------------------------------------------


def conversation(request):
    """The chat messages of a request's instructions and input. Raises Refused."""
    if "input" not in request:
        raise wrong("Field required", "input")
    given, messages = request["input"], []
    if request.get("instructions"):
        messages.append({"role": "system", "content": request["instructions"]})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise wrong("Input should be a valid string or a list that is not empty", "input")
    for number, item in enumerate(given):
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "message" and "content" in item and "role" in item:
            messages.append({"role": item["role"], "content": item["content"]})
        elif kind == "function_call_output" and "output" in item:
            messages.append({"role": "tool", "content": item["output"]})
        elif kind == "function_call":
            messages.append({"role": "assistant", "content": None})
        elif kind != "reasoning":
            raise wrong("Input should be a message, function_call, function_call_output or reasoning", "input", number)
    return messages


def response_tools(request):
    """The Tools of a request. Raises Refused."""
    functions, choice = functions_of(request.get("tools") or [], None), request.get("tool_choice") or "auto"
    if isinstance(choice, dict):
        choice = [named(choice, functions)]
    elif choice not in ("none", "auto", "required"):
        raise wrong("Input should be 'none', 'auto' or 'required', or name a function", "tool_choice")
    return Tools(functions, choice)
