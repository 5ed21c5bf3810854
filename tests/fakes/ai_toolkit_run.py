"""A small stand-in for ai-toolkit's run.py: the same command line, YAML, printed lines and files; it learns nothing.

Written after what version 0.12.26 does: https://github.com/ostris/ai-toolkit at commit 27a03a9. A file `behave.json`
beside it says what else it is to do: `fail_at`, `nan_at`, `words`, `pause_at` and `pause_s`, `alien`.
"""

import argparse
import json
import math
import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
BEHAVE = json.loads((HERE / "behave.json").read_text()) if (HERE / "behave.json").exists() else {}


def read_config(path):
    """Read YAML as it does: variables of the environment are put in first, then `[name]`."""
    text = re.sub(r"\$\{([^}]+)\}", lambda match: os.environ[match[1]], Path(path).read_text())
    config = yaml.safe_load(text)
    return json.loads(json.dumps(config).replace("[name]", config["config"]["name"]))


class Bar:
    """tqdm's bar on a pipe: a carriage return, and the whole line."""

    def __init__(self, name, total, at):
        self.name, self.total, self.n, self.postfix = name, total, at, ""

    def show(self):
        share = 100 * self.n // self.total
        tail = f", {self.postfix}" if self.postfix else ""
        sys.stderr.write(f"\r{self.name}: {share:3d}%|███▌      | {self.n}/{self.total} [00:05<00:50,  1.90it/s{tail}]")
        sys.stderr.flush()


class Job:
    """The one process of a job."""

    def __init__(self, name, process):
        self.name, self.process = name, process
        self.folder = Path(process["training_folder"]) / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.steps, self.every = process["train"]["steps"], process["save"]["save_every"]
        self.start = self.latest()

    def latest(self):
        paths = [each for each in self.folder.glob(f"{self.name}*.safetensors") if "_cn" not in str(each)]
        if not paths:
            return 0
        with safe_open(max(paths, key=os.path.getctime), "np") as file:
            step = json.loads(file.metadata()["training_info"])["step"]
        print(f"Found step {step} in metadata, starting from there")
        return step

    def adapter(self, step):
        """A LoRA for the first layers of the UNet, in the spelling that its model's kind has there."""
        unet = load_file(Path(self.process["model"]["name_or_path"]) / "unet/diffusion_pytorch_model.safetensors")
        names = [key.removesuffix(".weight") for key in unet if re.search(r"attn1\.to_[qkv]\.weight$", key)]
        rank, tensors = self.process["network"]["linear"], {}
        for name in names:
            rows, columns = unet[f"{name}.weight"].shape
            flat = "lora_unet_" + (name.replace(".", "_") if not BEHAVE.get("alien") else f"alien_{len(tensors)}")
            tensors[f"{flat}.lora_down.weight"] = np.full((rank, columns), 0.1, np.float32)
            tensors[f"{flat}.lora_up.weight"] = np.full((rows, rank), 0.001 * step, np.float32)
            tensors[f"{flat}.alpha"] = np.array(rank, np.float32)
        return tensors

    def save(self, step, final=False):
        number = "" if final else f"_{step:09d}"
        path = self.folder / f"{self.name}{number}.safetensors"
        info = json.dumps({"step": step, "epoch": 0})
        save_file(self.adapter(step), path, {"training_info": info, "format": "pt", "ss_output_name": self.name})
        print(f"Saved checkpoint to {path}")
        (self.folder / "optimizer.pt").write_bytes(b"a pickle that nobody else reads")
        print(f"Saved optimizer to {self.folder / 'optimizer.pt'}")

    def run(self):
        images = sorted(Path(self.process["datasets"][0]["folder_path"]).glob("*.png"))
        if not images or not all(each.with_suffix(".txt").exists() for each in images):
            raise ValueError("No images found")
        bar = Bar(self.name, self.steps, self.start)
        for step in range(self.start, self.steps):
            if BEHAVE.get("fail_at") == step:
                raise RuntimeError(BEHAVE["words"])
            loss = math.nan if BEHAVE.get("nan_at") == step else 1 / (step + 1)
            bar.postfix = f"lr: {self.process['train']['lr']:.1e} loss: {loss:.3e}"
            bar.show()
            if step != self.start and step % self.every == 0:
                print(f"\nSaving at step {step}")
                self.save(step)
            if BEHAVE.get("pause_at") == step:
                (HERE / "pauses").write_text(str(os.getpid()))
                time.sleep(BEHAVE["pause_s"])
            bar.n = step + 1
            bar.show()
        self.save(self.steps, final=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("config_file_list", nargs="+")
    path = parser.parse_args().config_file_list[0]
    (HERE / "environment.json").write_text(json.dumps(dict(os.environ)))
    print("Running 1 job")
    config = read_config(path)["config"]
    print(json.dumps(config["process"][0], indent=4))
    try:
        Job(config["name"], config["process"][0]).run()
    except KeyboardInterrupt:
        if BEHAVE.get("ignores_interrupts"):
            signal.pause()
        print("Job stopped")
        sys.exit(0)
    except Exception as error:
        print(f"Error running job: {error}")
        raise


if __name__ == "__main__":
    main()
