"""Training of the embedded demo model: fetch, render, train, assemble, measure."""
