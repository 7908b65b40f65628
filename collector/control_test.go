package main

import "testing"

func TestBandwidth(t *testing.T) {
	tests := []struct {
		text string
		want bandwidth
		ok   bool
	}{
		{"0", 0, true},
		{"1048576", 1 << 20, true},
		{"256KiB", 256 << 10, true},
		{"50MiB", 50 << 20, true},
		{"1GiB", 1 << 30, true},
		{"1024GiB", 1 << 40, true},
		{"1025GiB", 0, false},
		{"18446744073709551615GiB", 0, false},
		{"50MB", 0, false},
		{"1.5MiB", 0, false},
		{"-1", 0, false},
		{"MiB", 0, false},
		{"", 0, false},
	}
	for _, tt := range tests {
		var got bandwidth
		if err := got.UnmarshalText([]byte(tt.text)); got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%q is %d, %v; want %d", tt.text, got, err, tt.want)
		}
	}
}
