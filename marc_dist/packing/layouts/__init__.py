"""Layouts of archives, recognised by structure: each module tells whether its layout is there, and reads its labels."""
