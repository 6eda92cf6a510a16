package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/sdk"
)

const (
	mib         = int64(1) << 20
	hostReserve = 400 * mib
	poolReserve = 200 * mib
)

// smallHost mounts a file system of 3 GiB and starts a server on it, with a btrfs image in it.
func smallHost(t *testing.T) *server {
	t.Helper()
	host := pgtest.Mount(t, "ext4", 3<<30)
	logs := filepath.Join(filepath.Dir(host), "logs")
	if err := errors.Join(os.Mkdir(logs, 0o755), os.Chmod(logs, 0o755)); err != nil {
		t.Fatal(err)
	}
	s := prepareIn(t, logs, filepath.Join(host, "data"), "btrfs", "--storage-size", "1536MiB", "--storage-limit", "1536MiB",
		"--host-reserve", fmt.Sprint(hostReserve), "--pool-reserve", fmt.Sprint(poolReserve))
	s.Start()
	return s
}

func free(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// fill makes a file that leaves only so many bytes free where it is.
func fill(t *testing.T, path string, leave int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for step := 256 * mib; step >= 4096; {
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		more := min(step, free(t, path)-leave)
		if more < 4096 {
			return
		}
		if err := unix.Fallocate(int(f.Fd()), 0, st.Size(), more); err != nil {
			step /= 2 // less than that is left
		}
	}
}

// empty removes such a file and waits until its space is free: btrfs gives it back with the next commit only.
func empty(t *testing.T, path string) {
	t.Helper()
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := errors.Join(os.Remove(path), unix.Syncfs(int(dir.Fd()))); err != nil {
		t.Fatal(err)
	}
}

// refusesBranches checks that new branches and projects are refused with a message that says why, and leave no trace.
func (p *project) refusesBranches(t *testing.T) {
	t.Helper()
	before := p.s.trace(t)
	for path, body := range map[string]string{"/projects/" + p.ID + "/branches": `{"endpoints":[{"type":"read_write"}]}`, "/projects": `{"project":{}}`} {
		r := p.s.raw(t, "", "POST", path, body)
		if r.status != 503 || r.code != "INSUFFICIENT_STORAGE" || !strings.Contains(r.message, "space") {
			t.Errorf("POST %s with too little space: %d %s %q", path, r.status, r.code, r.message)
		}
	}
	if after := p.s.trace(t); after != before {
		t.Errorf("refused branches left a trace.\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

func TestSpaceRunsOut(t *testing.T) {
	needRoot(t, "it mounts a small file system")
	s := smallHost(t)
	host, pool := filepath.Dir(s.dir), filepath.Join(s.dir, "pool")
	p := s.checkable(t)
	b := p.branch(t, "")
	conn := s.connect(t, p.URI)
	sql(t, conn, "create table rows (n int primary key, filler text)")
	acked := 0
	write := func(n int) {
		t.Helper()
		conn := s.connect(t, p.URI)
		for range n {
			sql(t, conn, "insert into rows values ($1, repeat(md5($1::int::text), 30))", acked)
			acked++
		}
	}
	complete := func(when string) {
		t.Helper()
		conn := s.connect(t, p.URI)
		if n := value[int](t, conn, "select count(*) from rows"); n < acked {
			t.Errorf("%s: %d of %d acknowledged rows", when, n, acked)
		}
	}
	write(200)

	for name, place := range map[string]struct {
		dir     string
		reserve int64
	}{"host": {host, hostReserve}, "pool": {pool, poolReserve}} {
		filler := filepath.Join(place.dir, "filler")
		// Below the reserve: no new branches, but everything else goes on.
		fill(t, filler, place.reserve*3/4)
		eventually(t, opLimit, func() string { // a new pool's free space is known late
			if left := free(t, place.dir); left >= place.reserve {
				fill(t, filler, place.reserve*3/4)
				return fmt.Sprintf("%d bytes are still free", left)
			}
			return ""
		})
		p.refusesBranches(t)
		write(50)
		complete(name + " below the reserve")

		// Below half of it: computes are suspended before the file system fails them.
		fill(t, filler, place.reserve/4)
		p.awaitState(t, p.Endpoint, api.Idle)
		p.awaitState(t, b.Endpoint, api.Idle)
		if _, err := s.tryConnect(t, p.URI); sqlState(err) != "53100" {
			t.Errorf("%s: waking with too little space: %v", name, err)
		}
		for _, e := range []string{p.Endpoint, b.Endpoint} {
			if log := tail(filepath.Join(s.dir, "log", e+".log"), 1<<20); strings.Contains(log, "PANIC") {
				t.Errorf("%s: endpoint %s panicked:\n%s", name, e, log)
			}
		}
		s.settled(t)
		s.checksums(t, p.Branch)

		// There is space again: everything wakes.
		empty(t, filler)
		eventually(t, opLimit, func() string {
			if _, err := s.tryConnect(t, p.URI); err != nil {
				return err.Error()
			}
			return ""
		})
		complete(name + " freed")
		write(50)
		eventually(t, opLimit, func() string { // the deleted file's blocks come back with a commit
			r, err := s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{})
			if err != nil {
				return err.Error()
			}
			s.wait(t, r.Operations)
			if _, err := s.DeleteBranch(t.Context(), p.ID, r.Branch.ID); err != nil {
				t.Fatal(err)
			}
			return ""
		})
		s.settled(t)
	}

	// The host fills up to the last byte faster than anyone can watch, under a writer. An outage, but no loss.
	writer := s.connect(t, p.URI)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var done atomic.Int64
	done.Store(int64(acked))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for n := acked; ; n++ {
			_, err := writer.Exec(ctx, "insert into rows select $1, string_agg(md5(random()::text), '') from generate_series(1, 250)", n)
			if err != nil {
				return
			}
			done.Store(int64(n + 1))
		}
	}()
	eventually(t, opLimit, func() string {
		if done.Load() < int64(acked+20) {
			return "the writer does not write"
		}
		return ""
	})
	filler := filepath.Join(host, "filler")
	fill(t, filler, 0)
	select {
	case <-ended:
	case <-ctx.Done():
	case <-time.After(20 * time.Second):
		stop() // it wrote into what was allocated before
		<-ended
	}
	acked = int(done.Load())
	empty(t, filler)
	s.Down()
	<-s.exited
	s.Start()
	s.settled(t)
	complete("after the host was full")
	write(20)
	s.sound(t, p.Branch)
	for _, e := range []string{p.Endpoint, b.Endpoint} {
		p.suspend(t, e)
	}
	s.checksums(t, p.Branch)
	s.checksums(t, b.ID)
}
