"""What drafting gains on a user's own model, machine and questions, beside the alternatives.

Nothing here is imported by `import swift_sd`, and nothing here imports torch before it must.
"""
