"""Engines that others run, a file for each: datatrove, Ray Data, vLLM. Imported only when used."""
