// The device vocabulary in plain C++.
