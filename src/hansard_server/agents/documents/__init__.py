"""Documents of strangers become Markdown, in a process of their own."""
