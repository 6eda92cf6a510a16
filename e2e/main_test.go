// Package e2e tests Bough from outside: the real binary, its API, its Postgres proxy and what it leaves on the machine.
//
// As root the tests use the btrfs backend unless they say otherwise, as an ordinary user the copy backend.
// BOUGH_TEST_BINARY names a binary to test; without it one is built.
package e2e

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// program is the bough under test.
var program string

func TestMain(m *testing.M) { os.Exit(run(m)) }

// spec compares what the tests see with the published specification; nil where that is not installed.
var (
	spec *published
	own  *watch // what the tests' own clients see of it
)

func run(m *testing.M) int {
	var err error
	if spec, err = loadPublished(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if spec != nil {
		own = &watch{published: spec, next: http.DefaultTransport, seen: map[string]bool{}}
		http.DefaultTransport = own
	}
	if program = os.Getenv("BOUGH_TEST_BINARY"); program != "" {
		return conclude(m.Run())
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
	return conclude(m.Run())
}

// conclude looks at what only many tests together can show; the exit code is m.Run's unless that finds something.
func conclude(code int) int {
	if code != 0 || spec == nil {
		return code
	}
	all := true
	for name, unset := range map[string]string{"run": "", "skip": "", "list": "", "short": "false"} {
		all = all && flag.Lookup("test."+name).Value.String() == unset
	}
	if all || *update || len(proved) > 0 {
		if err := checkTable(all); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if gone := spec.gone(); all && len(gone) > 0 {
		fmt.Fprintf(os.Stderr, "these differences did not occur; take them out of differences.tsv:\n%s\n", strings.Join(gone, "\n"))
		code = 1
	}
	return code
}
