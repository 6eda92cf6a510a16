package history

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/storage"
)

// load is clients that insert rows, each in its own numbering, beside a stream of checkpoints.
type load struct {
	acked  [4]atomic.Int64 // the last number whose commit was acknowledged
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func startLoad(t *testing.T, s *server) *load {
	t.Helper()
	s.exec(t, "CREATE TABLE IF NOT EXISTS public.load (client int, n bigint, pad text, PRIMARY KEY (client, n))")
	l := &load{}
	ctx, cancel := context.WithCancel(t.Context())
	l.cancel = cancel
	for client := range l.acked {
		conn := s.connect(t)
		// The last client's commits are acknowledged before they are durable.
		if client == len(l.acked)-1 {
			_, err := conn.Exec(ctx, "SET synchronous_commit = off")
			must(t, err)
		}
		l.done.Go(func() {
			for n := int64(1); ; n++ {
				_, err := conn.Exec(ctx, "INSERT INTO public.load VALUES ($1, $2::bigint, repeat(md5($2::bigint::text), 60))", client, n)
				if err != nil {
					if ctx.Err() == nil {
						t.Errorf("insert: %v", err)
					}
					return
				}
				l.acked[client].Store(n)
			}
		})
	}
	conn := s.connect(t)
	l.done.Go(func() {
		for ctx.Err() == nil {
			if _, err := conn.Exec(ctx, "CHECKPOINT"); err != nil && ctx.Err() == nil {
				t.Errorf("checkpoint: %v", err)
				return
			}
		}
	})
	t.Cleanup(l.stop)
	return l
}

func (l *load) stop() {
	l.cancel()
	l.done.Wait()
}

func (l *load) snapshot() (acked [4]int64) {
	for i := range l.acked {
		acked[i] = l.acked[i].Load()
	}
	return acked
}

// waitFor blocks until every client has had n more commits acknowledged.
func (l *load) waitFor(t *testing.T, n int64) {
	t.Helper()
	from := l.snapshot()
	wait(t, func() bool {
		now := l.snapshot()
		for i := range now {
			if now[i] < from[i]+n {
				return false
			}
		}
		return true
	})
}

// TestForkOfRunningParent: every commit acknowledged before the call is in the child, and no hole before it.
func TestForkOfRunningParent(t *testing.T) {
	eachBackend(t, func(t *testing.T, r *rig) {
		parent := r.start(t, "p")
		l := startLoad(t, parent)
		for i := range 3 {
			l.waitFor(t, 200)
			id := fmt.Sprintf("c%d", i)
			req := r.request(t, "p", id, parent)
			before := l.snapshot()
			res, err := Fork(t.Context(), req)
			must(t, err)
			t.Logf("forked at %s, %d KiB to replay", res.LSN, res.ReplayLen>>10)
			kept := hashes(t, r.wal(id))
			if _, err := os.Lstat(filepath.Join(r.pool.Path(id), "postmaster.pid")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the child has its parent's postmaster.pid: %v", err)
			}
			l.waitFor(t, 100) // the parent goes on
			wantSameHashes(t, "child's WAL", kept, hashes(t, r.wal(id)))

			child := r.start(t, id)
			for client, n := range before {
				q := fmt.Sprintf("SELECT coalesce(max(n), 0)::text || '/' || count(*) FROM public.load WHERE client = %d", client)
				var last, count int64
				if _, err := fmt.Sscanf(child.text(t, q), "%d/%d", &last, &count); err != nil {
					t.Fatal(err)
				}
				if last < n || last != count {
					t.Errorf("client %d: %d rows up to %d in the child; %d were acknowledged before the fork", client, count, last, n)
				}
			}
			if p, c := parent.timeline(t), child.timeline(t); p == c {
				t.Errorf("parent and child both write timeline %s", p)
			}
			if got := switchPoint(t, r.wal(id), child); got > res.LSN {
				t.Errorf("the child left its parent at %s, after the reported %s", got, res.LSN)
			}
			child.exec(t, "INSERT INTO public.load VALUES (99, 1, '')")
			child.stop(t)
			r.checkSums(t, id)
			must(t, r.dirs.Delete(t.Context(), id))
			must(t, r.pool.Delete(t.Context(), id))
		}
		l.stop()
		if n := parent.text(t, "SELECT count(*)::text FROM public.load WHERE client = 99"); n != "0" {
			t.Errorf("%s rows of a child are in the parent", n)
		}
		parent.stop(t)
		r.checkSums(t, "p")
	})
}

// switchPoint is where a server's timeline begins.
func switchPoint(t *testing.T, walDir string, s *server) core.LSN {
	t.Helper()
	var timeline uint32
	if _, err := fmt.Sscanf(s.timeline(t), "%X", &timeline); err != nil {
		t.Fatal(err)
	}
	l, err := readLineage(timeline, s.r.control(t, s.id).SegmentSize, walDir)
	must(t, err)
	return l.spans[0].begin
}

// TestForkSharesNothingThatIsWritten: with a segment made ahead beside the one being written, neither is in the child.
func TestForkSharesNothingThatIsWritten(t *testing.T) {
	eachBackend(t, func(t *testing.T, r *rig) {
		parent := r.start(t, "p")
		parent.exec(t, "CREATE TABLE public.t (n bigint, pad text)")
		current := func() string { return parent.text(t, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())") }
		// A checkpoint makes the next segment once three quarters of one are used. Copied by backup mode, the switch at its
		// end would use it up, so there must be more WAL behind it.
		ahead := func() bool {
			for name := range segments(t, r.wal("p")) {
				if name > current() {
					return true
				}
			}
			return false
		}
		first := current()
		for i := 0; !ahead() || current() == first; i++ {
			if i == 400 {
				t.Fatal("PostgreSQL made no segment ahead")
			}
			parent.exec(t, "INSERT INTO public.t SELECT g, repeat('x', 900) FROM generate_series(1, 2000) g")
			parent.exec(t, "CHECKPOINT")
		}
		parent.exec(t, "INSERT INTO public.t SELECT g, repeat('x', 900) FROM generate_series(1, 500) g")
		res := r.fork(t, "p", "c", parent)
		size := r.control(t, "p").SegmentSize
		writing := core.WALFileName(res.Timeline, res.LSN.Segment(size), size)
		names := segments(t, r.wal("c"))
		for name, links := range names {
			if name > writing {
				t.Errorf("the child has %s, from after the fork at %s", name, res.LSN)
			}
			if name == writing && links != 1 {
				t.Errorf("the child shares %s, which the parent still writes", name)
			}
		}
		if _, ok := names[writing]; !ok && uint64(res.LSN)%size != 0 {
			t.Errorf("the child lacks %s: %v", writing, names)
		}
		kept := hashes(t, r.wal("c"))
		rows := parent.text(t, "SELECT count(*)::text FROM public.t")
		parent.exec(t, "INSERT INTO public.t SELECT g, repeat('y', 900) FROM generate_series(1, 60000) g")
		parent.exec(t, "CHECKPOINT")
		wantSameHashes(t, "child's WAL after the parent went on", kept, hashes(t, r.wal("c")))

		child := r.start(t, "c")
		if got := child.text(t, "SELECT count(*)::text FROM public.t"); got != rows {
			t.Errorf("the child has %s rows, want %s", got, rows)
		}
		child.stop(t)
		r.checkSums(t, "c")
	})
}

// TestForkLinksWhatIsComplete: complete segments cost nothing, and neither side ever writes into one again.
func TestForkLinksWhatIsComplete(t *testing.T) {
	eachBackend(t, func(t *testing.T, r *rig) {
		parent := r.start(t, "p")
		parent.exec(t, "CHECKPOINT")
		parent.exec(t, "CREATE TABLE public.t AS SELECT g, repeat('x', 900) FROM generate_series(1, 40000) g")
		req := r.request(t, "p", "c", parent)
		// Keep an eye on every inode that the two can share.
		archive := filepath.Join(r.dir, "archive")
		must(t, os.Mkdir(archive, 0o755))
		req.CleanChild = func(dir string) error {
			for name, links := range segments(t, r.wal("c")) {
				if links > 1 {
					must(t, os.Link(filepath.Join(r.wal("c"), name), filepath.Join(archive, name)))
				}
			}
			return postgres.CleanChild(dir)
		}
		_, err := Fork(t.Context(), req)
		must(t, err)
		kept := hashes(t, archive)
		if len(kept) == 0 && r.pool.Atomic() {
			t.Error("nothing is shared")
		}
		child := r.start(t, "c")
		for _, s := range []*server{child, parent} {
			s.exec(t, "INSERT INTO public.t SELECT g, repeat('z', 900) FROM generate_series(1, 40000) g")
			s.exec(t, "CHECKPOINT")
			s.exec(t, "INSERT INTO public.t VALUES (1, '')")
			if n := s.text(t, "SELECT count(*)::text FROM public.t"); n != "80001" {
				t.Errorf("%s has %s rows", s.id, n)
			}
			s.stop(t)
			must(t, Trim(t.Context(), r.wal(s.id), r.control(t, s.id)))
		}
		for name, sum := range hashes(t, archive) {
			if kept[name] != sum {
				t.Errorf("shared segment %s has changed", name)
			}
		}
	})
}

// TestForkOfSleepingParent covers a clean shutdown (trimmed or not) and a crash.
func TestForkOfSleepingParent(t *testing.T) {
	eachBackend(t, func(t *testing.T, r *rig) {
		parent := r.start(t, "p")
		parent.exec(t, "CREATE TABLE public.t (n bigint PRIMARY KEY, pad text)")
		rows := 0
		for i, how := range []string{"stopped", "trimmed", "crashed", "crashed at once"} {
			if how != "crashed at once" {
				parent.exec(t, fmt.Sprintf("INSERT INTO public.t SELECT g, repeat('x', 900) FROM generate_series(%d, %d) g", rows+1, rows+30000))
				rows += 30000
			}
			flushed := parent.lsn(t, "pg_current_wal_flush_lsn()")
			switch how {
			case "stopped":
				parent.stop(t)
			case "trimmed":
				parent.stop(t)
				must(t, Trim(t.Context(), r.wal("p"), r.control(t, "p")))
			default:
				parent.crash(t)
			}
			id := fmt.Sprintf("c%d", i)
			res := r.fork(t, "p", id, nil)
			if res.LSN < flushed {
				t.Errorf("%s: forked at %s; the parent had flushed %s", how, res.LSN, flushed)
			}
			kept := hashes(t, r.wal(id))
			parent = r.start(t, "p") // writes on from its own last segment
			if start := parent.lsn(t, "pg_current_wal_insert_lsn()"); start < res.LSN {
				t.Errorf("%s: the parent went on at %s, inside what the child has up to %s", how, start, res.LSN)
			}
			parent.exec(t, fmt.Sprintf("INSERT INTO public.t SELECT g, repeat('x', 900) FROM generate_series(%d, %d) g", rows+1, rows+30000))
			rows += 30000
			wantSameHashes(t, how+": child's WAL", kept, hashes(t, r.wal(id)))

			child := r.start(t, id)
			if got := child.text(t, "SELECT count(*)::text FROM public.t"); got != fmt.Sprint(rows-30000) {
				t.Errorf("%s: the child has %s rows, want %d", how, got, rows-30000)
			}
			if got := switchPoint(t, r.wal(id), child); got != res.LSN {
				t.Errorf("%s: the child left its parent at %s, reported was %s", how, got, res.LSN)
			}
			if p, c := parent.timeline(t), child.timeline(t); p == c {
				t.Errorf("%s: parent and child both write timeline %s", how, p)
			}
			child.stop(t)
			r.checkSums(t, id)
		}
	})
}

// TestForkOfFork goes down a chain whose links are running, stopped, crashed, just promoted and never started.
func TestForkOfFork(t *testing.T) {
	eachBackend(t, func(t *testing.T, r *rig) {
		s := r.start(t, "p")
		s.exec(t, "CREATE TABLE public.t (depth int)")
		parent, want := "p", 0
		seen := map[string]bool{s.timeline(t): true}
		for depth, how := range []string{"running", "just promoted", "stopped", "crashed", "never started", "never started", "just promoted"} {
			id := fmt.Sprintf("d%d", depth)
			if s != nil && how != "just promoted" {
				s.exec(t, fmt.Sprintf("INSERT INTO public.t VALUES (%d)", depth))
				want++
			}
			switch how {
			case "running", "just promoted":
				if s == nil {
					s = r.start(t, parent)
				}
				r.fork(t, parent, id, s)
				s.crash(t)
			case "stopped":
				s.stop(t)
				r.fork(t, parent, id, nil)
			case "crashed":
				s.crash(t)
				r.fork(t, parent, id, nil)
			case "never started":
				if s != nil {
					s.stop(t)
					s = nil
					r.fork(t, parent, id+"-a", nil)
					parent = id + "-a"
				}
				r.fork(t, parent, id, nil)
			}
			parent, s = id, nil
			if how == "never started" {
				continue
			}
			s = r.start(t, id)
			if got := s.text(t, "SELECT count(*)::text FROM public.t"); got != fmt.Sprint(want) {
				t.Fatalf("depth %d (%s): %s rows, want %d", depth, how, got, want)
			}
			if tl := s.timeline(t); seen[tl] {
				t.Errorf("depth %d: timeline %s is an ancestor's", depth, tl)
			} else {
				seen[tl] = true
			}
		}
		s.stop(t)
		r.checkSums(t, parent)
	})
}

// TestForkRepeats: what an interrupted call left is replaced.
func TestForkRepeats(t *testing.T) {
	r := newRig(t, storage.BackendCopy, "")
	r.fork(t, "p", "c", nil)
	must(t, os.Remove(filepath.Join(r.pool.Path("c"), "standby.signal")))
	must(t, os.WriteFile(filepath.Join(r.wal("c"), "000000010000000000000099"), nil, 0o600))
	r.fork(t, "p", "c", nil)
	r.start(t, "c")
	ids, err := r.dirs.List(t.Context())
	must(t, err)
	if fmt.Sprint(ids) != "[c p]" {
		t.Errorf("branches with WAL: %v", ids)
	}
}

// TestForkFailsWhole: whatever fails, nothing of the child stays, and the parent is as before.
func TestForkFailsWhole(t *testing.T) {
	eachBackend(t, func(t *testing.T, r *rig) {
		parent := r.start(t, "p")
		broken := errors.New("broken")
		for name, change := range map[string]func(req *ForkRequest){
			"control": func(req *ForkRequest) {
				req.ReadControl = func(string) (ControlInfo, error) { return ControlInfo{}, broken }
			},
			"clean": func(req *ForkRequest) { req.CleanChild = func(string) error { return broken } },
			"flush": func(req *ForkRequest) { req.Running = failingSource{req.Running, broken} },
		} {
			t.Run(name, func(t *testing.T) {
				req := r.request(t, "p", "c", parent)
				change(&req)
				if _, err := Fork(t.Context(), req); !errors.Is(err, broken) {
					t.Errorf("error = %v", err)
				}
				r.wantNothing(t, "c")
				r.fork(t, "p", "c", parent) // the backup of the failed call has ended
				must(t, r.pool.Delete(t.Context(), "c"))
				must(t, r.dirs.Delete(t.Context(), "c"))
			})
		}
		t.Run("missing parent", func(t *testing.T) {
			_, err := Fork(t.Context(), r.request(t, "nope", "c", nil))
			wantKind(t, err, core.KindNotFound)
			r.wantNothing(t, "c")
		})
		t.Run("bad id", func(t *testing.T) {
			req := r.request(t, "p", "c", parent)
			req.Child.Branch = "../c"
			_, err := Fork(t.Context(), req)
			wantKind(t, err, core.KindInvalid)
		})
		t.Run("cancelled", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			req := r.request(t, "p", "c", parent)
			req.CleanChild = func(string) error { cancel(); return nil }
			if _, err := Fork(ctx, req); !errors.Is(err, context.Canceled) {
				t.Errorf("error = %v", err)
			}
			r.wantNothing(t, "c")
		})
		t.Run("tablespace", func(t *testing.T) {
			link := filepath.Join(r.pool.Path("p"), "pg_tblspc", "12345")
			must(t, os.Symlink("/tmp", link))
			defer os.Remove(link)
			_, err := Fork(t.Context(), r.request(t, "p", "c", parent))
			wantKind(t, err, core.KindUnprocessable)
			r.wantNothing(t, "c")
		})
		parent.exec(t, "CREATE TABLE public.still_alive ()")
	})
}

type failingSource struct {
	Source
	err error
}

func (s failingSource) FlushLSN(context.Context) (core.LSN, uint32, error) { return 0, 0, s.err }

// TestForkWithoutSpace fills the file system of the WAL directories.
func TestForkWithoutSpace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	wal := t.TempDir()
	must(t, os.Chmod(filepath.Dir(wal), 0o755))
	must(t, unix.Mount("tmpfs", wal, "tmpfs", 0, "size=64m,mode=755"))
	t.Cleanup(func() {
		if err := unix.Unmount(wal, 0); err != nil {
			t.Error(err)
		}
	})
	r := newRig(t, storage.BackendBtrfs, wal)
	parent := r.start(t, "p")
	parent.exec(t, "CREATE TABLE public.t AS SELECT generate_series(1, 50000) n")
	filler := filepath.Join(wal, "filler")
	if out, err := exec.Command("dd", "if=/dev/zero", "of="+filler, "bs=64k").CombinedOutput(); err == nil {
		t.Fatalf("64 MiB hold anything: %s", out)
	}
	_, err := Fork(t.Context(), r.request(t, "p", "c", parent))
	wantKind(t, err, core.KindNoSpace)
	r.wantNothing(t, "c")
	must(t, os.Remove(filler))
	r.fork(t, "p", "c", parent)
	child := r.start(t, "c")
	if n := child.text(t, "SELECT count(*)::text FROM public.t"); n != "50000" {
		t.Errorf("%s rows", n)
	}
}
