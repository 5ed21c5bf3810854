"""What is known of models and of this worker without generating: `models.py` without a device, `device.py` with one."""
