"""The prompts of a pipeline's call: a job's texts themselves, or embeddings of weighted and long ones.

A pipeline reads its prompts itself unless one needs more than the pipeline can do. So everything else stays what
diffusers generates, bit for bit. No library fits: compel's syntax is another one (`(word)1.3`, `word++`), without
`(word:1.3)`, `BREAK` and Stable Diffusion 3, and sd_embed is no package.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from worker.core.errors import ParameterOutOfRange
from worker.core.job import Job
from worker.core.prompt import PromptForm, holds_weights
from worker.engine.arguments import parameters_of
from worker.engine.prompt_mixing import first_texts, mixed
from worker.engine.text_encoding import ClipEncoder, T5Encoder, emphasised

Signature = Mapping[str, Any]
# The ends of the names of each form's encoders, prompts and tokenizers: "text_encoder" + "_2".
_CLIPS: Mapping[PromptForm, tuple[str, ...]] = {
    "clip": ("",), "clip-pair": ("", "_2"), "clip-t5": ("",), "clip-pair-t5": ("", "_2"),
}  # fmt: skip
_T5: Mapping[PromptForm, str] = {"clip-t5": "_2", "clip-pair-t5": "_3"}
_TEXTS = tuple(f"{sign}prompt{end}" for sign in ("", "negative_") for end in ("", "_2", "_3"))
_SHOWN = 60


def worded(pipe: Any, job: Job, arguments: dict[str, Any], signature: Signature) -> dict[str, Any]:
    """Return `arguments`, with embeddings in place of prompts that have weights or are too long for `pipe`."""
    form, how = job.words, job.params.get("prompt_weighting", "auto")
    if form is None or how == "none":
        return arguments
    prompts = _Prompts(pipe, form, arguments, signature)
    if how == "auto" and not prompts.need_care():
        return arguments
    with torch.no_grad():
        embeddings = prompts.embeddings()
    return {name: value for name, value in arguments.items() if name not in _TEXTS} | embeddings


@contextmanager
def heard(pipe: Any, job: Job, arguments: dict[str, Any], signature: Signature) -> Iterator[dict[str, Any]]:
    """Yield `worded` arguments, with a denoiser that hears prompts which change from step to step."""
    if not job.mixes or job.words is None:
        yield worded(pipe, job, arguments, signature)
        return
    form = job.words

    def encode(prompt: str, negative: str | None) -> dict[str, Any]:
        texts = {"prompt": prompt} | ({} if negative is None else {"negative_prompt": negative})
        with torch.no_grad():
            return _Prompts(pipe, form, arguments | texts, signature).embeddings()

    rest = {name: value for name, value in arguments.items() if name not in _TEXTS}
    with mixed(pipe, job, encode):
        yield rest | encode(*first_texts(job))


def read_alike(pipe: Any, jobs: Sequence[Job]) -> bool:
    """True if one call reads the prompts of all jobs as it reads each alone: in the same way and as many chunks."""
    return len(jobs) == 1 or len({_way(pipe, job) for job in jobs}) == 1


def check_clip_skip(pipe: Any, job: Job) -> None:
    """Raise ParameterOutOfRange where `clip_skip` leaves no layer of an encoder."""
    skip = job.params.get("clip_skip")
    if not isinstance(skip, int) or job.words is None:
        return
    # All but the single encoder are read one layer before their last already.
    most = min(clip.layers for clip in _clips(pipe, job.words)) - (1 if job.words == "clip" else 2)
    if skip > most:
        raise ParameterOutOfRange(
            f"clip_skip must be at most {most} for {job.call.spec.id}, whose text encoder has no more layers to leave "
            f"out; {skip} was sent.",
            field="clip_skip",
        )


def notes_on_prompts(pipe: Any, job: Job) -> tuple[str, ...]:
    """Return a sentence for each prompt of `job` that the pipeline cannot read to its end."""
    signature = parameters_of(type(pipe).__call__)
    texts = {name: job.params.get(name) for name in _TEXTS}
    texts |= {"prompt": job.prompt, "negative_prompt": job.negative_prompt}
    notes = [
        note
        for name, text in texts.items()
        if isinstance(text, str) and text
        for note in _cut(pipe, job, name, text, signature)
    ]
    return tuple(dict.fromkeys(notes))


class _Prompts:
    """The prompts of one call, and the encoders that read them."""

    def __init__(self, pipe: Any, form: PromptForm, arguments: dict[str, Any], signature: Signature) -> None:
        self._pipe = pipe
        self._form = form
        self._arguments = arguments
        self._signature = signature
        self._count = len(_listed(arguments["prompt"]))
        self._clips = _clips(pipe, form)
        self._t5 = _t5(pipe, form)

    @cached_property
    def _device(self) -> torch.device:
        """The device for the embeddings. Asked for only if needed: the pipeline searches all its modules for it."""
        return self._pipe._execution_device

    def need_care(self) -> bool:
        """True if a prompt holds weights, or is longer than the pipeline reads it."""
        texts = [text for name in _TEXTS for text in _listed(self._arguments.get(name))]
        return _need_care(self._form, self._clips, self._t5, texts)

    def embeddings(self) -> dict[str, Any]:
        """Return the arguments that the call gets instead of the prompts."""
        positive, negative = self._texts(""), self._texts("negative_")
        skip = self._arguments.get("clip_skip")
        # Without a negative prompt FLUX.1 is not guided by one; the others are, by an empty one.
        guided = "negative_prompt_embeds" in self._signature and (negative or self._form != "clip-t5")
        unguided = negative or [[""] * self._count for _ in positive]
        length = max(self._length(positive), self._length(unguided) if guided else 1)
        embeds, pooled = self._encoded(positive, length, skip)
        embeddings = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        if guided:
            # clip_skip is for the prompt alone, as in diffusers.
            embeds, pooled = self._encoded(unguided, length, None)
            if not negative and getattr(self._pipe.config, "force_zeros_for_empty_prompt", False):
                embeds, pooled = torch.zeros_like(embeds), None if pooled is None else torch.zeros_like(pooled)
            embeddings |= {"negative_prompt_embeds": embeds, "negative_pooled_prompt_embeds": pooled}
        accepted = {name: value for name, value in embeddings.items() if value is not None and name in self._signature}
        return self._repeated(accepted) if self._form in _T5 else accepted

    def _repeated(self, embeddings: Mapping[str, Tensor]) -> dict[str, Any]:
        """Repeat embeddings once for each image. These pipelines repeat prompts, but not embeddings."""
        times = int(self._arguments.get("num_images_per_prompt", 1))
        repeated: dict[str, Any] = {name: value.repeat_interleave(times, dim=0) for name, value in embeddings.items()}
        return repeated | ({"num_images_per_prompt": 1} if times > 1 else {})

    def _texts(self, sign: str) -> list[list[str]]:
        """Return one text a job, for each encoder; an empty list where there is none at all."""
        first = self._arguments.get(f"{sign}prompt")
        if first is None:
            return []
        ends = [*_CLIPS[self._form], *([_T5[self._form]] if self._form in _T5 else [])]
        return [self._spread(self._arguments.get(f"{sign}prompt{end}") or first) for end in ends]

    def _spread(self, text: Any) -> list[str]:
        texts = _listed(text)
        return texts * self._count if len(texts) == 1 else texts

    def _length(self, texts: list[list[str]]) -> int:
        return max(
            len(clip.chunks(text)) for clip, clip_texts in zip(self._clips, texts, strict=False) for text in clip_texts
        )

    def _encoded(self, texts: list[list[str]], length: int, skip: int | None) -> tuple[Tensor, Tensor | None]:
        """Return the embeddings (jobs, tokens, width), and the pooled vectors (jobs, width) where the form has any."""
        rows, pools = zip(
            *(self._row([encoder_texts[job] for encoder_texts in texts], length, skip) for job in range(self._count)),
            strict=True,
        )
        return torch.cat(rows), None if pools[0] is None else torch.cat(pools)

    def _row(self, texts: list[str], length: int, skip: int | None) -> tuple[Tensor, Tensor | None]:
        """Encode one job's prompt, one text for each encoder."""
        hidden, pools = [], []
        for clip, text in zip(self._clips, texts, strict=False):
            chunks = clip.chunks(text)
            chunks = chunks[:1] if self._form == "clip-t5" else chunks + [()] * (length - len(chunks))
            output, weights = clip.encode(chunks, self._device)
            layer = emphasised(_layer(output, clip, self._form, skip), weights)
            hidden.append(layer.flatten(0, 1)[None].to(self._device, clip.model.dtype))
            pools.append(output.pooler_output if self._form == "clip-t5" else output[0])
        embeds = torch.cat(hidden, dim=-1)
        if self._form == "clip":
            return embeds, None
        if self._form == "clip-pair":
            return embeds, pools[-1][:1].to(self._device)
        pooled = torch.cat([pool[:1].to(self._device, embeds.dtype) for pool in pools], dim=-1)
        reach = int(self._arguments.get("max_sequence_length") or self._signature["max_sequence_length"].default)
        t5_embeds = self._t5_embeds(texts[-1], reach, embeds)
        if self._form == "clip-t5":
            return t5_embeds, pooled
        return torch.cat([pad(embeds, (0, t5_embeds.shape[-1] - embeds.shape[-1])), t5_embeds], dim=1), pooled

    def _t5_embeds(self, text: str, reach: int, clip_embeds: Tensor) -> Tensor:
        """Return T5's embeddings of `text`; zeros where Stable Diffusion 3 was loaded without it."""
        if self._t5 is None:
            return clip_embeds.new_zeros(1, reach, int(self._pipe.transformer.config.joint_attention_dim))
        return self._t5.encode(text, reach, self._device).to(self._device, self._t5.model.dtype)


def _layer(output: Any, clip: ClipEncoder, form: PromptForm, skip: int | None) -> Tensor:
    """Return the layer that the family's pipelines read, `skip` layers earlier."""
    if form != "clip":
        return output.hidden_states[-((skip or 0) + 2)]
    if skip is None:
        return output[0]
    return clip.model.text_model.final_layer_norm(output.hidden_states[-(skip + 1)])


def _clips(pipe: Any, form: PromptForm) -> list[ClipEncoder]:
    """Return the form's CLIP encoders that the pipeline has: SDXL's refiner lacks the first."""
    pairs = ((getattr(pipe, f"text_encoder{end}", None), end) for end in _CLIPS[form])
    return [ClipEncoder(model, getattr(pipe, f"tokenizer{end}")) for model, end in pairs if model is not None]


def _t5(pipe: Any, form: PromptForm | None) -> T5Encoder | None:
    """Return the form's T5, or that of a pipeline with a single encoder; None for a pipeline without a T5."""
    end = "" if form is None else _T5.get(form)
    model, tokenizer = (getattr(pipe, f"{name}{end}", None) for name in ("text_encoder", "tokenizer"))
    kind = getattr(getattr(model, "config", None), "model_type", "")
    return T5Encoder(model, tokenizer) if kind in ("t5", "umt5") and tokenizer is not None else None


def _need_care(form: PromptForm, clips: Sequence[ClipEncoder], t5: T5Encoder | None, texts: Sequence[str]) -> bool:
    # T5 reads prose, and prose has brackets: there only a number makes a weight of them.
    if any(holds_weights(text, explicit=form in _T5) for text in texts):
        return True
    return t5 is None and any(len(clip.tokens(text)) > clip.room for clip in clips for text in texts)


def _way(pipe: Any, job: Job) -> int:
    """Return 0 for the pipeline's own way, else one more than the chunks that the longest prompt fills."""
    form, how = job.words, job.params.get("prompt_weighting", "auto")
    if form is None or how == "none":
        return 0
    prompts = [job.prompt, job.negative_prompt, *(job.params.get(name) for name in _TEXTS)]
    texts = [text for text in prompts if isinstance(text, str)]
    clips = _clips(pipe, form)
    # One chunk without weights is read alike either way, but a T5 does not read brackets in prose alike.
    if form in _T5 and how == "auto" and not _need_care(form, clips, _t5(pipe, form), texts):
        return 0
    return 1 + (0 if form == "clip-t5" else max(len(clip.chunks(text)) for clip in clips for text in texts))


def _cut(pipe: Any, job: Job, name: str, text: str, signature: Signature) -> list[str]:
    """Return a note on the lost end of one prompt: by a T5, else by the CLIPs where they do not read in chunks."""
    sign, _, end = name.partition("prompt")
    how = job.params.get("prompt_weighting", "auto")
    t5 = _t5(pipe, job.words)
    if t5 is not None:
        t5_end = _T5[job.words] if job.words is not None else ""
        reach = job.params.get("max_sequence_length") or getattr(signature.get("max_sequence_length"), "default", None)
        has_own_prompt = (
            bool(t5_end) and job.params.get(f"{sign}prompt{t5_end}") is not None
        )  # it reads a prompt of its own
        if end != (t5_end if has_own_prompt else "") or not isinstance(reach, int):
            return []
        weighted = how == "a1111" or (how == "auto" and holds_weights(text, explicit=True))
        ids = [id_ for id_, _ in t5.tokens(text, weighted=weighted and job.words is not None)]
        return _note(name, ids, reach - 1, t5.tokenizer, "shorten it, or raise max_sequence_length if the model can")
    if job.words is None or how != "none":
        return []
    clip = _clips(pipe, job.words)[0]
    ids = [id_ for id_, _ in clip.tokens(text)]
    return _note(name, ids, clip.room, clip.tokenizer, "leave prompt_weighting out to have all of it read")


def _note(name: str, ids: list[int], room: int, tokenizer: Any, fix: str) -> list[str]:
    if len(ids) <= room:
        return []
    rest = " ".join(str(tokenizer.decode(ids[room:])).split())
    excerpt = rest if len(rest) <= _SHOWN else f"{rest[:_SHOWN]}…"
    return [f"{name} is {len(ids)} tokens long and the model reads {room}: “{excerpt}” was not read; {fix}."]


def _listed(text: Any) -> list[str]:
    if text is None:
        return []
    return [text] if isinstance(text, str) else list(text)
