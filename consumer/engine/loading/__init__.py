"""From files to pipelines and LoRAs that are loaded on the device."""
