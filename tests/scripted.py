"""A chat model that plays a script: for what no real backend does on demand (time-outs, nonsense, truncation)."""

from collections.abc import Callable
from dataclasses import dataclass, field

from dream_ray.chat.protocol import ChatReply, ChatRequest

Script = Callable[[ChatRequest, int], str | ChatReply]


@dataclass
class ScriptedChat:
    """Answers with what `script(request, number of earlier requests like it)` gives; keeps the requests."""

    script: Script
    requests: list[ChatRequest] = field(default_factory=list)
    name: str = "scripted"
    broken: bool = False

    async def ask(self, request: ChatRequest) -> ChatReply:
        earlier = sum(past.task == request.task and past.fields == request.fields for past in self.requests)
        self.requests.append(request)
        answer = self.script(request, earlier)
        return answer if isinstance(answer, ChatReply) else ChatReply(answer, prompt_tokens=10, completion_tokens=2)

    def check_alive(self) -> None:
        if self.broken:
            raise RuntimeError("the scripted model is broken")
