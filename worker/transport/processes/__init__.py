"""One port, several processes: which of them takes a request, its bytes there and back, one answer out of several."""
