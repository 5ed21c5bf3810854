"""How jobs are run on this machine, how many and how large they may be, and what is reported of them."""

from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from pydantic import Field, SecretStr

from worker.app.setting_groups.group import SettingsGroup, Words


class JobSettings(SettingsGroup):
    """The engine, the safety check, limits and admission, logs and traces."""

    # The engine
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    max_resident_models: int = Field(default=1, ge=1, le=64)
    resident_loras: int = Field(default=4, ge=0, le=64)
    ram_tier_gb: float | None = Field(default=None, ge=0, le=4_096, allow_inf_nan=False)
    lora_merge_gb: float | None = Field(default=None, ge=0, le=4_096, allow_inf_nan=False)
    warm_up: bool = True
    silence_seconds: float = Field(default=300.0, ge=1, le=86_400)
    levers: Literal["auto", "off"] = "auto"
    attention_kernels: Words = ()
    kernels_dir: Path = Path("/opt/kernels")
    compile_cache_key: SecretStr | None = Field(default=None, min_length=16, max_length=1_024)
    compile_cache_gb: float = Field(default=4.0, gt=0, le=1_024)
    batch_size: int = Field(default=1, ge=1, le=32)
    batch_timeout_ms: float = Field(default=50.0, ge=0, le=10_000)

    # Trainings
    training: Literal["off", "exclusive", "shared"] = "off"
    training_minutes: float = Field(default=60.0, gt=0, le=100_000)
    training_processes: int = Field(default=1, ge=1, le=64)
    ai_toolkit: Path | None = None
    ai_toolkit_python: Path | None = None

    # The safety check of every image before it is answered
    safety_checker: str | None = None
    safety_threshold: float = Field(default=0.5, ge=0, le=1)
    safety_action: Literal["report", "blur", "black"] = "report"
    safety_labels: Words = ()

    # Limits of a job
    worker_concurrency: int = Field(default=2, ge=1, le=64)
    max_images: int = Field(default=8, ge=1, le=64)
    max_loras: int = Field(default=8, ge=0, le=64)
    timeout_seconds: float = Field(default=600.0, gt=0, le=86_400)
    max_response_mb: float = Field(default=9.5, gt=0.01, le=100)
    result_cache_seconds: float = Field(default=600.0, ge=0, le=86_400)
    shutdown_grace_seconds: float = Field(default=30.0, ge=0, le=86_400)

    # Admission, and a caller's share of the worker
    max_concurrent_jobs: int = Field(default=64, ge=1, le=4_096)
    max_queued_jobs: int = Field(default=2_000, ge=0, le=100_000)
    max_queued_mb: float = Field(default=512.0, gt=0, le=1_000_000)
    max_pixel_steps: int = Field(default=0, ge=0)
    rate_limit_per_minute: int = Field(default=0, ge=0, le=1_000_000)
    quota_pixel_steps_per_day: int = Field(default=0, ge=0)

    # The worker's reports on itself
    log_format: Literal["json", "text"] | None = None
    gpu_price_per_hour: float | None = Field(default=None, ge=0, le=10_000, allow_inf_nan=False)
    alerts: Path | None = None
    smtp_url: SecretStr | None = None
    otel_exporter_otlp_endpoint: str | None = None
    otel_exporter_otlp_headers: SecretStr | None = None

    # RunPod's queue: answers that callers read from /stream, in parts
    stream_results: bool = False

    # Set by RunPod on its machines: the address of its queue
    runpod_webhook_get_job: str | None = None

    def alert_warnings(self) -> list[str]:
        """Return a sentence for a mail server that nothing is sent through."""
        if self.smtp_url is None or self.alerts is not None:
            return []
        return ["SMTP_URL is set and ALERTS is not: no mail is sent. Name an alerts.yaml with email in ALERTS."]

    def native_code_warnings(self) -> list[str]:
        """Return a sentence where native code of the Hub's or of other workers may be loaded."""
        sentences = []
        if self.attention_kernels:
            names = ", ".join(self.attention_kernels)
            sentences.append(f"ATTENTION_KERNELS is set: native code of {names} may run in this worker.")
        if self.compile_cache_key is not None:
            sentences.append(
                "COMPILE_CACHE_KEY is set: code that workers with this key have compiled runs in this one."
            )
        return sentences

    def training_warnings(self) -> list[str]:
        """Return a sentence where callers may train, and one where other people's code does."""
        sentences = []
        if self.training != "off":
            sentences.append(
                f"TRAINING is {self.training}: callers may train adapters, each for up to {self.training_minutes:g} "
                "minutes of this worker's device, and keep them on its volume. With ADMIN_KEYS only admins may."
            )
        if self.ai_toolkit is not None:
            sentences.append(
                "AI_TOOLKIT is set: trainings may run ai-toolkit, other people's code with the rights of this worker's "
                "user, in a process that is given none of its secrets."
            )
        return sentences

    @property
    def jobs_taken(self) -> int:
        """The number of jobs taken from the queue at once: while one batch is generated, the next one gathers."""
        return max(self.worker_concurrency, 2 * self.batch_size if self.batch_size > 1 else 1)

    @property
    def logs_json(self) -> bool:
        """True if log lines are JSON: on RunPod's machines they are, where a program reads them first."""
        return (self.log_format or ("text" if self.runpod_webhook_get_job is None else "json")) == "json"

    @property
    def otel_headers(self) -> dict[str, str]:
        """The trace collector's headers, such as a key: `name=value,name=value`."""
        headers = self.otel_exporter_otlp_headers
        pairs = (pair.partition("=") for pair in headers.get_secret_value().split(",")) if headers else ()
        return {name.strip(): unquote(value.strip()) for name, _, value in pairs if name.strip()}
