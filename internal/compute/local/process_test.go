package local_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/compute/local"
	"github.com/boughdb/bough/internal/pgtest"
)

// TestPromoteHurriesTheReplay stops the startup process, so that it can be looked at after the promotion was asked for.
func TestPromoteHurriesTheReplay(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{Stopped: true})
	if err := os.WriteFile(filepath.Join(c.DataDir, "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	driver, err := local.New(pgtest.Cred(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := driver.Start(t.Context(), compute.Launch{
		Build: c.Build, DataDir: c.DataDir, SocketDir: c.SocketDir, LogFile: c.LogFile,
		Args: []string{"unix_socket_directories=" + c.SocketDir, "hot_standby=off"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Signal(compute.StopImmediate); err != nil {
			t.Error(err)
		}
		<-p.Done()
		p.Release()
	})
	startup := 0
	eventually(t, "the server is a standby", func() bool {
		lock, _ := os.ReadFile(filepath.Join(c.DataDir, "postmaster.pid"))
		return strings.Contains(string(lock), "standby")
	})
	pid := strconv.Itoa(p.Handle().PID)
	children, err := os.ReadFile(filepath.Join("/proc", pid, "task", pid, "children"))
	if err != nil {
		t.Fatal(err)
	}
	for child := range strings.FieldsSeq(string(children)) {
		if title, _ := os.ReadFile(filepath.Join("/proc", child, "cmdline")); strings.Contains(string(title), "startup") {
			if startup, err = strconv.Atoi(child); err != nil {
				t.Fatal(err)
			}
		}
	}
	if startup == 0 {
		t.Fatal("the server has no startup process")
	}
	if err := syscall.Kill(startup, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(startup, syscall.SIGCONT) }()
	want := 0 // who may not give priority (an ordinary user, root in many containers) goes on without
	if syscall.Setpriority(syscall.PRIO_PROCESS, startup, -1) == nil {
		want = -10
	}
	if err := p.Promote(); err != nil {
		t.Fatal(err)
	}
	// The system call answers 20 minus the niceness (getpriority(2)).
	if got, err := syscall.Getpriority(syscall.PRIO_PROCESS, startup); err != nil || 20-got != want {
		t.Errorf("niceness of the startup process: %d, %v; want %d", 20-got, err, want)
	}
	if err := syscall.Kill(startup, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server is promoted", func() bool {
		lock, _ := os.ReadFile(filepath.Join(c.DataDir, "postmaster.pid"))
		return strings.Contains(string(lock), "ready")
	})
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not happen that %s", what)
		}
	}
}
