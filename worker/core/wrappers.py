"""What wraps a model while it is trained, as it stays in the names of saved tensors: one table for all who read names.

Data parallelism, torch.compile, sharding (FSDP), recomputed activations, peft.
"""

# Around the whole model: only before a name, since a class may have a `module` of its own.
PARALLEL = "module"
PEFT_MODEL = "base_model.model"
# Around any module, whole models too. Each begins with an underscore, and kohya's names leave that out of count.
AROUND_ANY = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Around a layer that peft adapts.
PEFT_LAYER = "base_layer"
# The place of the weights in what was saved. Of weights beside their moving average the average is what is published.
AVERAGED, WEIGHTS = "params_ema", "params"
PLACES = ("model_state_dict", "state_dict", AVERAGED, WEIGHTS)
