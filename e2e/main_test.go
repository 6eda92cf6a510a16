// Package e2e tests Bough from outside: the real binary, its API, its Postgres proxy and what it leaves on the machine.
//
// As root the tests use the btrfs backend unless they say otherwise, as an ordinary user the copy backend.
// BOUGH_TEST_BINARY names a binary to test; without it one is built.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// program is the bough under test.
var program string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if program = os.Getenv("BOUGH_TEST_BINARY"); program != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "bough-e2e-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// Ordinary users run it too.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	program = filepath.Join(dir, "bough")
	build := exec.Command("go", "build", "-o", program, "../cmd/bough")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "cannot build bough:", err)
		return 1
	}
	return m.Run()
}
