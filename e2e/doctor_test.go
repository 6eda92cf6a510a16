package e2e

import (
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestRemovedRunDir restarts a server whose sockets were all removed, as a cleaner of temporary files does.
func TestRemovedRunDir(t *testing.T) {
	s := start(t, eager()...)
	p := s.project(t)
	must(t, os.RemoveAll(s.runDir()))
	s.awaitReport(t, "control_database", "control") // the operator's socket is back
	s.Restart()
	s.settled(t)
	if n := value[int](t, s.connect(t, p.URI), "select 1"); n != 1 {
		t.Error(n)
	}
	s.awaitHealth(t)
}

// TestDoctorWithoutServer looks from outside.
func TestDoctorWithoutServer(t *testing.T) {
	s := start(t, eager()...)
	p := s.project(t)
	awake := s.postmaster(t, p.Branch)
	s.Kill9()
	if d := s.doctor(t); len(d.Findings) > 0 || d.Server != "not running" {
		t.Errorf("a server that was killed leaves nothing wrong: %+v", d)
	}
	must(t, os.Mkdir(s.data("br-nobody-1"), 0o700))
	must(t, os.Chmod(s.data(p.Branch), 0o755))
	d := s.doctor(t)
	if f, ok := find(d.Findings, "orphan_volume", "br-nobody-1"); !ok || f.Will == "" || f.State != "reported" {
		t.Errorf("%+v", d.Findings)
	}
	if _, ok := find(d.Findings, "access", p.Branch); !ok {
		t.Errorf("%+v", d.Findings)
	}
	s.Start()
	s.awaitHealth(t)
	if now := s.postmaster(t, p.Branch); now != awake {
		t.Error("the compute was restarted")
	}
	s.Down()
	d = s.doctor(t)
	if len(d.Findings) > 0 || len(d.Unchecked) == 0 {
		t.Errorf("after bough down: %+v", d)
	}
	if text, err := s.bough("doctor"); err != nil || !strings.Contains(text, "not looked at") {
		t.Errorf("%v\n%s", err, text)
	}
}

// TestKilledWhileNobodyLooks kills a compute while there is no server to see it: the next start makes it whole.
func TestKilledWhileNobodyLooks(t *testing.T) {
	s := start(t, eager()...)
	other, p := s.bystander(t), s.project(t)
	sql(t, s.connect(t, p.URI), "create table kept as select generate_series(1, 100) as n")
	pid := s.postmaster(t, p.Branch)
	s.Kill9()
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	s.Start()
	s.settled(t)
	if n := value[int](t, s.connect(t, p.URI), "select count(*) from kept"); n != 100 {
		t.Errorf("%d rows, want 100", n)
	}
	other.conn = s.connect(t, other.URI)
	other.check(t)
	s.awaitHealth(t)
}
