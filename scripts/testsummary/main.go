// Command testsummary reads `go test -json` and prints what `go test` would, and at the end which tests were skipped and why.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// event is one line of `go test -json`; see `go doc test2json`.
type event struct {
	Action, Package, ImportPath, Test, Output string
}

// reason is how testing prints t.Skip's text.
var reason = regexp.MustCompile(`^\s+\S+\.go:\d+: (.*)`)

func main() {
	output := map[string][]string{} // of what runs, by package and test
	skipped := map[string][]string{}
	failures := 0
	in := bufio.NewReader(os.Stdin)
	for {
		line, readErr := in.ReadBytes('\n')
		var e event
		if len(line) > 0 && json.Unmarshal(line, &e) != nil {
			fmt.Print(string(line)) // what the build says
		}
		key := e.Package + " " + e.Test
		switch {
		case e.Action == "build-output":
			fmt.Print(e.Output)
		case e.Action == "output" && e.Test == "":
			// The package's own lines: its result, and what was printed outside of a test.
			if line := strings.TrimSpace(e.Output); line != "PASS" && line != "FAIL" {
				fmt.Print(e.Output)
			}
		case e.Action == "output":
			if !strings.HasPrefix(e.Output, "=== ") {
				output[key] = append(output[key], e.Output)
			}
		case e.Action == "fail" && e.Test != "":
			failures++
			fmt.Print(strings.Join(output[key], ""))
			delete(output, key)
		case e.Action == "fail":
			// A test that was cut off, by a panic or the time limit, has no result of its own.
			for _, cut := range slices.Sorted(keysOf(output, e.Package)) {
				fmt.Print(strings.Join(output[cut], ""))
				delete(output, cut)
			}
		case e.Action == "skip" && e.Test != "":
			why := "no reason given"
			for _, text := range output[key] {
				if m := reason.FindStringSubmatch(text); m != nil {
					why = m[1]
				}
			}
			skipped[why] = append(skipped[why], e.Package[strings.LastIndex(e.Package, "/")+1:]+"."+e.Test)
			delete(output, key)
		case e.Action == "pass":
			delete(output, key)
		}
		if readErr != nil {
			break
		}
	}
	if len(skipped) == 0 {
		fmt.Println("\nNo test was skipped.")
	} else {
		fmt.Println("\nSkipped:")
	}
	why := make([]string, 0, len(skipped))
	for w := range skipped {
		why = append(why, w)
	}
	slices.Sort(why)
	for _, w := range why {
		fmt.Printf("  %s\n    %s\n", w, strings.Join(skipped[w], "\n    "))
	}
	if failures > 0 {
		fmt.Printf("\n%d tests failed; their output is above.\n", failures)
	}
}

// keysOf yields the keys of a package's tests.
func keysOf(output map[string][]string, pkg string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for key := range output {
			if strings.HasPrefix(key, pkg+" ") && !yield(key) {
				return
			}
		}
	}
}
