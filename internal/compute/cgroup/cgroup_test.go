package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
)

const hybrid = `24 1 254:0 / / rw,relatime - ext4 /dev/vda rw
36 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
37 24 0:29 / /sys/fs/cgroup/mem\040ory rw,relatime - cgroup cgroup rw,memory
38 24 0:29 / /elsewhere rw,relatime - cgroup cgroup rw,memory
39 24 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
cut off
`

func TestParseMounts(t *testing.T) {
	m := parseMounts(hybrid)
	for controller, want := range map[string]string{
		"cpu": "/sys/fs/cgroup/cpu,cpuacct", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct", "memory": "/sys/fs/cgroup/mem ory", "pids": "",
	} {
		if got := m.v1[controller]; got != want {
			t.Errorf("%s is mounted on %q; want %q", controller, got, want)
		}
	}
	if m.v2 != "/sys/fs/cgroup/unified" {
		t.Errorf("version 2 is mounted on %q", m.v2)
	}
}

// hierarchy is a folder with files like the kernel's.
func hierarchy(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestOpenSaysWhyNot(t *testing.T) {
	empty := t.TempDir()
	without := hierarchy(t, map[string]string{"cgroup.controllers": "hugetlb pids\n"})
	for name, c := range map[string]struct {
		m    mounts
		says string
	}{
		"nothing mounted":     {mounts{}, "controllers cpu and memory"},
		"no memory":           {mounts{v1: map[string]string{"cpu": empty, "cpuacct": empty}}, "controllers cpu and memory"},
		"2 without them":      {mounts{v2: without}, "controllers cpu and memory"},
		"kernel without CFS":  {mounts{v1: map[string]string{"cpu": empty, "cpuacct": empty, "memory": empty}}, "cpu.cfs_quota_us"},
		"not to be handed on": {mounts{v2: hierarchy(t, map[string]string{"cgroup.controllers": "cpu memory"})}, "handed down"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := open("test", c.m)
			if !core.IsKind(err, core.KindPrecondition) || !strings.Contains(core.UserMessage(err), c.says) {
				t.Errorf("err = %v; want one that says %q", err, c.says)
			}
		})
	}
}

// fake is a group of either version whose files are ordinary ones.
func fake(t *testing.T, version int, content map[string]string) (*Group, func(name string) string) {
	t.Helper()
	files := map[string]string{}
	for name, text := range content {
		files[filepath.Join(top, "srv", "ep-one", name)] = text
	}
	dir := hierarchy(t, files)
	tree := &Tree{version: version, name: "srv", cpu: dir, acct: dir, memory: dir}
	return tree.Group("ep-one"), func(name string) string {
		raw, err := os.ReadFile(filepath.Join(dir, top, "srv", "ep-one", name))
		if err != nil {
			t.Error(err)
		}
		return string(raw)
	}
}

func TestVersion2Files(t *testing.T) {
	g, read := fake(t, 2, map[string]string{
		"cpu.max": "", "cpu.weight": "", "memory.max": "", "memory.high": "",
		"cpu.stat":       "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 3\nnr_throttled 2\nthrottled_usec 250000\n",
		"memory.current": "1048576\n",
		"memory.stat":    "anon 1000\nfile 9000\ninactive_file 48576\nactive_file 200000\n",
	})
	if err := errors.Join(g.SetCPU(0.25, 0.25), g.SetMemory(1<<30, 1<<29)); err != nil {
		t.Fatal(err) // cpu.max.burst is missing, as on kernels before 5.14
	}
	for name, want := range map[string]string{"cpu.max": "25000 100000", "cpu.weight": "25", "memory.max": "1073741824", "memory.high": "536870912"} {
		if got := read(name); got != want {
			t.Errorf("%s = %q; want %q", name, got, want)
		}
	}
	if cores, err := g.CPU(); err != nil || cores != 0.25 {
		t.Errorf("CPU = %v, %v", cores, err)
	}
	u, err := g.Usage()
	if want := (Usage{CPU: 1500 * time.Millisecond, Throttled: 250 * time.Millisecond, Memory: 800_000}); err != nil || u != want {
		t.Errorf("Usage = %+v, %v; want %+v", u, err, want)
	}
	for _, name := range []string{"cpu.max", "cpu.weight", "memory.max", "memory.high"} {
		if err := os.Truncate(filepath.Join(g.cpu, name), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(g.SetCPU(0, 300), g.SetMemory(0, 0)); err != nil {
		t.Fatal(err)
	}
	if got := read("cpu.max") + " " + read("memory.max") + " " + read("memory.high") + " " + read("cpu.weight"); got != "max 100000 max max 10000" {
		t.Errorf("without limits: %q", got)
	}
	if cores, err := g.CPU(); err != nil || cores != 0 {
		t.Errorf("CPU = %v, %v", cores, err)
	}
}

func TestVersion1Files(t *testing.T) {
	g, read := fake(t, 1, map[string]string{
		"cpu.cfs_quota_us": "", "cpu.shares": "", "cpu.cfs_period_us": "100000\n", "memory.limit_in_bytes": "", "memory.soft_limit_in_bytes": "",
		"cpu.stat": "nr_periods 3\nnr_throttled 2\nthrottled_time 250000000\n", "cpuacct.usage": "1500000000\n",
		"memory.usage_in_bytes": "1048576\n",
		"memory.stat":           "cache 5\ninactive_file 1\nactive_file 2\ntotal_inactive_file 48576\ntotal_active_file 200000\n",
	})
	if err := errors.Join(g.SetCPU(1.5, 1.5), g.SetMemory(1<<30, 1<<29)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"cpu.cfs_quota_us": "150000", "cpu.shares": "1536", "memory.limit_in_bytes": "1073741824", "memory.soft_limit_in_bytes": "536870912",
	} {
		if got := read(name); got != want {
			t.Errorf("%s = %q; want %q", name, got, want)
		}
	}
	if cores, err := g.CPU(); err != nil || cores != 1.5 {
		t.Errorf("CPU = %v, %v", cores, err)
	}
	u, err := g.Usage()
	if want := (Usage{CPU: 1500 * time.Millisecond, Throttled: 250 * time.Millisecond, Memory: 800_000}); err != nil || u != want {
		t.Errorf("Usage = %+v, %v; want %+v", u, err, want)
	}
}

// real opens groups of the kernel's, which are gone when the test ends.
func real(t *testing.T) *Tree {
	t.Helper()
	name := fmt.Sprintf("test-%d-%s", os.Getpid(), strings.ToLower(t.Name()))
	tree, err := Open(name)
	if core.IsKind(err, core.KindPrecondition) {
		t.Skip("needs root and cgroup controllers: " + core.UserMessage(err))
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
		defer cancel()
		if err := Clean(ctx, name); err != nil {
			t.Error(err)
		}
		for _, dir := range tree.below(filepath.Join(top, name)) {
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("%s stays", dir)
			}
		}
	})
	return tree
}

// run starts a shell script in a group and kills all of it when the test ends.
func run(t *testing.T, g *Group, script string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := g.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		r.Close()
	})
	return cmd, bufio.NewReader(r)
}

// The first thing that the process does is to look where it is.
func TestBornInTheGroup(t *testing.T) {
	tree := real(t)
	g := tree.Group("ep-one")
	if g.Exists() {
		t.Fatal("the group exists before it is made")
	}
	if err := errors.Join(g.Make(1), g.Make(1)); err != nil { // twice: a start that was cut off
		t.Fatal(err)
	}
	for range 20 {
		cmd := exec.Command("/bin/cat", "/proc/self/cgroup")
		out, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = out
		if err := g.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		raw, _ := os.ReadFile(out.Name())
		out.Close()
		if n := strings.Count(string(raw), "/"+top+"/"+tree.name+"/ep-one\n"); n < len(g.dirs) {
			t.Fatalf("born in %d of %d groups:\n%s", n, len(g.dirs), raw)
		}
	}
	// The server's own threads are not in it; the last one that was may be on its way out.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		inside := 0
		own, _ := filepath.Glob("/proc/self/task/*/cgroup")
		for _, path := range own {
			if raw, err := os.ReadFile(path); err == nil && strings.Contains(string(raw), tree.name) {
				inside++
			}
		}
		if inside == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d threads of ours stay in the group", inside)
		}
	}
	if ids, err := tree.IDs(); err != nil || len(ids) != 1 || ids[0] != "ep-one" {
		t.Errorf("IDs = %v, %v", ids, err)
	}
	for range 2 {
		if err := g.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// The kernel holds a group to its limit, children too, and says for how long it kept it waiting.
func TestLimitsHold(t *testing.T) {
	g := real(t).Group("ep-one")
	if err := errors.Join(g.Make(1), g.SetCPU(0.25, 1), g.SetMemory(64<<20, 32<<20)); err != nil {
		t.Fatal(err)
	}
	run(t, g, "(while :; do :; done) & while :; do :; done")
	var first Usage
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		u, err := g.Usage()
		if err != nil {
			t.Fatal(err)
		}
		if first.CPU == 0 {
			first = u
		}
		if u.Throttled-first.Throttled > 200*time.Millisecond && u.CPU > first.CPU {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a busy group is not throttled: %+v, then %+v", first, u)
		}
	}
	if err := g.SetCPU(2, 2); err != nil {
		t.Fatal(err)
	}
	if cores, err := g.CPU(); err != nil || cores != 2 {
		t.Errorf("CPU = %v, %v", cores, err)
	}
	if err := errors.Join(g.SetCPU(0.25, 1), g.SetCPU(0, 1)); err != nil {
		t.Fatal(err)
	}
	if cores, err := g.CPU(); err != nil || cores != 0 {
		t.Errorf("CPU without a limit = %v, %v", cores, err)
	}
}

// A group that holds a process is not removed, and says which one.
func TestRemoveWaits(t *testing.T) {
	tree := real(t)
	g := tree.Group("ep-one")
	if err := g.Make(1); err != nil {
		t.Fatal(err)
	}
	cmd, _ := run(t, g, "sleep 600")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Remove(ctx); err == nil {
		t.Fatal("the group of a living process was removed")
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := g.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if g.Exists() {
		t.Error("it stays")
	}
}

// Version 2's way of being born, on a mounted hierarchy, with or without the controllers.
func TestVersion2Birth(t *testing.T) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	root := parseMounts(string(raw)).v2
	if err != nil || root == "" || os.Geteuid() != 0 {
		t.Skip("needs root and a mounted cgroup2")
	}
	name := "test-" + strconv.Itoa(os.Getpid()) + "-birth"
	tree := &Tree{version: 2, name: name, cpu: root, acct: root, memory: root}
	g := tree.Group("ep-one")
	server := filepath.Join(root, top, name)
	if err := os.MkdirAll(server, 0o755); err != nil {
		t.Skip("cgroup2 is mounted, but cannot be written: " + err.Error())
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
		defer cancel()
		if err := errors.Join(g.Remove(ctx), rmdir(ctx, server)); err != nil {
			t.Error(err)
		}
		_ = unix.Rmdir(filepath.Dir(server))
	})
	if err := os.Mkdir(g.cpu, 0o755); err != nil {
		t.Fatal(err)
	}
	_, out := run(t, g, "cat /proc/self/cgroup; echo end; sleep 600")
	for {
		line, err := out.ReadString('\n')
		if err != nil || line == "end\n" {
			t.Fatalf("the process was not born in %s (%v)", g.cpu, err)
		}
		if strings.HasPrefix(line, "0::") {
			if !strings.HasSuffix(line, "/"+top+"/"+name+"/ep-one\n") {
				t.Fatalf("born in %s", line)
			}
			return
		}
	}
}
