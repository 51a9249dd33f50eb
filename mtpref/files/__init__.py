"""Files and what is in them: containers (GGUF, safetensors, npz), vocabularies and chat templates. doors.py opens and
writes whatever a user names."""
