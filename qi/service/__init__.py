"""The quantization service: the numpy engine over HTTP. Needs the extra `service`; loads no framework."""
