"""Facts about models and this worker, without generating: `models.py` needs no device, `device.py` has one."""
