"""Looking at runs and comparing them: traces, dumps, pages, comparison, llama.cpp's programs and logs, self test."""
