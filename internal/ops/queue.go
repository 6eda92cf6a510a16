// Package ops runs durable operations. The order of the work lives in the operations table: a job names a branch, and
// whoever runs it claims the first open operation of that branch, again and again, until none is left. So work on one
// branch is serial and in order, work on different branches is parallel, and an operation survives its server.
//
// River carries the jobs: they are inserted in the transaction that inserts the operations. The server that commits also
// kicks the branch at once, so nobody waits for a poll.
package ops

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store"
)

// Commit changes state in the transaction that ends an operation.
type Commit func(ctx context.Context, q store.Q) error

// Runner does the work of operations.
type Runner interface {
	// Acquire makes a project this server's, and ready to be worked on, unless a server that lives has it. It returns the
	// number of the server that has it in the end; 0 when there is no such project any more.
	Acquire(ctx context.Context, projectID string) (server int64, err error)
	// Run does the work and returns what to commit with its end. It may be called again after any failure and after a crash
	// at any point, so every step must be repeatable.
	Run(ctx context.Context, op core.Operation) (Commit, error)
	// Failed returns what to commit when the operation has failed for good.
	Failed(op core.Operation, cause error) Commit
	// Ended is told of every end, for metrics.
	Ended(op core.Operation, status core.OperationStatus, took time.Duration)
	// Told is called with what another server said about an endpoint.
	Told(ctx context.Context, news News, endpointID string)
}

// Fleet is the servers that share the control database.
type Fleet interface {
	// Self is this server's number.
	Self() int64
	// Alive tells whether a server runs.
	Alive(server int64) bool
	// Company tells whether other servers run.
	Company() bool
}

// MaxFailures is how often an operation is tried.
const MaxFailures = 3

const (
	firstRetry   = 200 * time.Millisecond // doubled with each failure
	sweepEvery   = 5 * time.Second        // looks for work that nobody runs
	maxJobs      = 200                    // River jobs at once; most of them wait for their branch
	jobTimeout   = 30 * time.Minute
	stopDeadline = 20 * time.Second
)

// Queue runs operations.
type Queue struct {
	store  *store.Store
	runner Runner
	log    *slog.Logger
	fleet  Fleet
	river  *river.Client[pgx.Tx]

	claims sync.RWMutex // held alone while projects are given up: nobody claims work of them meanwhile

	mu       sync.Mutex
	branches map[string]*branch
	waiters  map[string][]chan struct{}
	stopped  bool
	stopOnce sync.Once
	work     sync.WaitGroup
	ctx      context.Context
	cancel   context.CancelFunc
}

// branch is one that is being worked on.
type branch struct {
	again bool          // more was queued meanwhile
	done  chan struct{} // closed when nobody works on it any more
}

// branchJob asks for the work of a branch.
type branchJob struct {
	BranchID string `json:"branch_id"`
}

// Kind implements river.JobArgs.
func (branchJob) Kind() string { return "branch" }

type branchWorker struct {
	river.WorkerDefaults[branchJob]
	q *Queue
}

// Work waits until the branch has been worked on, so that the job stays in the queue until then.
func (w *branchWorker) Work(ctx context.Context, job *river.Job[branchJob]) error {
	done := w.q.kick(job.Args.BranchID)
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// New makes a queue; work starts with Start. Until then operations can be inserted.
func New(ctx context.Context, s *store.Store, fleet Fleet, log *slog.Logger) (*Queue, error) {
	driver := riverpgxv5.New(s.Pool())
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: quiet(log)})
	if err != nil {
		return nil, core.Wrap(err, "ops.new", "")
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return nil, core.Wrap(err, "ops.migrate", "the control database's user needs CREATE")
	}
	q := &Queue{
		store: s, log: log, fleet: fleet,
		branches: map[string]*branch{}, waiters: map[string][]chan struct{}{},
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, &branchWorker{q: q})
	q.river, err = river.NewClient(driver, &river.Config{
		Queues:                      map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: maxJobs}},
		Workers:                     workers,
		Logger:                      quiet(log),
		JobTimeout:                  jobTimeout,
		CompletedJobRetentionPeriod: time.Hour,
	})
	if err != nil {
		return nil, core.Wrap(err, "ops.new", "")
	}
	return q, nil
}

// Start begins the work, with what an earlier server left unfinished first. ctx bounds the start, not the work.
func (q *Queue) Start(ctx context.Context, runner Runner) error {
	q.runner = runner
	q.ctx, q.cancel = context.WithCancel(context.WithoutCancel(ctx))
	q.work.Go(func() { q.store.Listen(q.ctx, q.hear, q.deaf) })
	if err := q.sweep(ctx); err != nil {
		return err
	}
	if err := q.river.Start(q.ctx); err != nil {
		return core.Wrap(err, "ops.start", "")
	}
	q.work.Go(func() {
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			select {
			case <-q.ctx.Done():
				return
			case <-tick.C:
				if err := q.sweep(q.ctx); err != nil && q.ctx.Err() == nil {
					q.log.Warn("cannot look for unfinished operations", "error", err)
				}
			}
		}
	})
	return nil
}

// sweep finds work that nobody runs: its server died, or its job was lost.
func (q *Queue) sweep(ctx context.Context) error {
	if err := q.store.ReleaseDeadClaims(ctx, q.fleet.Alive); err != nil {
		return err
	}
	ids, err := q.store.BusyBranches(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		q.kick(id)
	}
	return nil
}

// Stop lets the running operations end until ctx does, up to a limit; what does not is taken up at the next start.
func (q *Queue) Stop(ctx context.Context) {
	q.stopOnce.Do(func() {
		q.mu.Lock()
		q.stopped = true
		q.mu.Unlock()
		if q.cancel == nil {
			return
		}
		patience, cancel := context.WithTimeout(ctx, stopDeadline)
		defer cancel()
		idle := make(chan struct{})
		go func() {
			defer close(idle)
			for {
				q.mu.Lock()
				var b *branch
				for _, b = range q.branches {
					break
				}
				q.mu.Unlock()
				if b == nil {
					return
				}
				select {
				case <-b.done:
				case <-patience.Done():
					return
				}
			}
		}()
		<-idle
		q.cancel()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopDeadline)
		defer cancel()
		_ = q.river.StopAndCancel(end) // its jobs wait for branches, which have just ended
		q.work.Wait()
	})
}

// Enqueue inserts operations and their job in q's transaction. The caller holds the lock of their branch, and calls
// Kick once the transaction is committed.
func (q *Queue) Enqueue(ctx context.Context, tx store.Q, ops ...core.Operation) ([]core.Operation, error) {
	pgTx, ok := tx.InTx()
	if !ok {
		return nil, errors.New("ops: Enqueue outside of a transaction")
	}
	out := make([]core.Operation, 0, len(ops))
	jobs := map[string]bool{}
	for _, op := range ops {
		saved, err := tx.InsertOperation(ctx, op)
		if err != nil {
			return nil, err
		}
		out = append(out, saved)
		if jobs[op.BranchID] {
			continue
		}
		jobs[op.BranchID] = true
		if _, err := q.river.InsertTx(ctx, pgTx, branchJob{BranchID: op.BranchID}, nil); err != nil {
			return nil, core.Wrap(err, "ops.enqueue", "")
		}
	}
	return out, nil
}

// Record inserts an operation without a job, for work that its caller kicks at once and waits for: if this server dies, the
// next one's sweep finds it. The rest is as for Enqueue.
func (q *Queue) Record(ctx context.Context, tx store.Q, op core.Operation) (core.Operation, error) {
	return tx.InsertOperation(ctx, op)
}

// Kick starts the work on a branch at once.
func (q *Queue) Kick(branchID string) { q.kick(branchID) }

// kick returns a channel that is closed when the branch has no more work.
func (q *Queue) kick(branchID string) <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if b := q.branches[branchID]; b != nil {
		b.again = true
		return b.done
	}
	b := &branch{done: make(chan struct{})}
	if q.stopped || q.ctx == nil {
		close(b.done)
		return b.done
	}
	q.branches[branchID] = b
	q.work.Go(func() { q.drain(branchID, b) })
	return b.done
}

func (q *Queue) drain(branchID string, b *branch) {
	for {
		more, err := q.next(branchID)
		if err != nil && q.ctx.Err() == nil {
			q.log.Error("cannot claim an operation", "branch_id", branchID, "error", err)
		}
		q.mu.Lock()
		if (more || b.again) && err == nil && !q.stopped {
			b.again = false
			q.mu.Unlock()
			continue
		}
		delete(q.branches, branchID)
		close(b.done)
		q.mu.Unlock()
		return
	}
}

// next runs the first open operation of a branch, or tells the server whose it is; more is false when there is nothing to do
// here.
func (q *Queue) next(branchID string) (more bool, err error) {
	q.claims.RLock()
	op, ok, err := q.store.ClaimHead(q.ctx, branchID, q.fleet.Self())
	q.claims.RUnlock()
	if err != nil {
		return false, err
	}
	if ok {
		q.execute(op)
		q.wake(op.ID)
		return true, nil
	}
	head, ok, err := q.store.Head(q.ctx, branchID)
	if err != nil || !ok || head.Claimed {
		return false, err
	}
	switch server, err := q.runner.Acquire(q.ctx, head.ProjectID); {
	case err != nil || server == 0:
		return false, err
	case server == q.fleet.Self():
		return true, nil
	default:
		q.Tell(q.ctx, newsWork, work(server, branchID))
		return false, nil
	}
}

// execute runs one operation to its end, or until the server stops.
func (q *Queue) execute(op core.Operation) {
	log := q.log.With("operation_id", op.ID, "action", op.Action, "branch_id", op.BranchID, "endpoint_id", op.EndpointID, "request_id", op.RequestID)
	for {
		begun := time.Now()
		commit, err := q.runner.Run(q.ctx, op)
		if err == nil {
			err = q.end(op, commit, core.OpFinished, "")
		}
		took := time.Since(begun)
		if err == nil {
			log.Info("operation finished", "took", took)
			q.runner.Ended(op, core.OpFinished, took)
			return
		}
		if q.ctx.Err() != nil {
			return // the next server goes on with it
		}
		failures, countErr := q.store.CountFailure(q.ctx, op.ID, core.UserMessage(err))
		if countErr != nil {
			log.Error("cannot record a failed attempt", "error", countErr)
			failures = MaxFailures
		}
		log.Warn("operation attempt failed", "failures", failures, "error", err)
		if failures >= MaxFailures || permanent(err) {
			if endErr := q.end(op, q.runner.Failed(op, err), core.OpFailed, failure(err, op)); endErr != nil {
				log.Error("cannot record a failed operation; it is tried again", "error", endErr)
			} else {
				q.runner.Ended(op, core.OpFailed, took)
				return
			}
		}
		select {
		case <-q.ctx.Done():
			return
		case <-time.After(firstRetry << min(failures, 6)):
		}
	}
}

// permanent tells whether trying again cannot help.
func permanent(err error) bool {
	switch core.KindOf(err) {
	case core.KindInternal, core.KindUnavailable, core.KindLocked:
		return false
	}
	return true
}

// failure is what the API shows.
func failure(err error, op core.Operation) string {
	if core.KindOf(err) == core.KindInternal {
		return "internal error; the server's log has the details under the operation's id " + op.ID
	}
	return core.UserMessage(err)
}

func (q *Queue) end(op core.Operation, commit Commit, status core.OperationStatus, message string) error {
	return q.store.Tx(q.ctx, func(tx store.Q) error {
		if commit != nil {
			if err := commit(q.ctx, tx); err != nil {
				return err
			}
		}
		if q.fleet.Company() {
			if err := tx.Tell(q.ctx, q.message(newsEnded, op.ID)); err != nil {
				return err
			}
		}
		return tx.EndOperation(q.ctx, op.ID, status, message)
	})
}

func (q *Queue) wake(opID string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, ch := range q.waiters[opID] {
		close(ch)
	}
	delete(q.waiters, opID)
}

// Wait returns when an operation has ended: nil when it finished, else a KindUnavailable error with its message.
func (q *Queue) Wait(ctx context.Context, opID string) error {
	ended := make(chan struct{})
	q.mu.Lock()
	q.waiters[opID] = append(q.waiters[opID], ended)
	q.mu.Unlock()
	defer q.forget(opID, ended)
	for {
		status, message, err := q.store.OperationStatus(ctx, opID)
		switch {
		case core.IsKind(err, core.KindNotFound):
			return core.Errorf(core.KindUnavailable, "", "the operation was deleted with its project")
		case err != nil:
			return err
		case status == core.OpFinished:
			return nil
		case status.Done():
			return core.Errorf(core.KindUnavailable, "", "%s", message)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
			ended = nil // once is enough; a nil channel blocks
		case <-time.After(q.patience()): // another server may run it, and its message may be lost
		}
	}
}

func (q *Queue) forget(opID string, ended chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	rest := slices.DeleteFunc(q.waiters[opID], func(c chan struct{}) bool { return c == ended })
	if len(rest) == 0 {
		delete(q.waiters, opID)
	} else {
		q.waiters[opID] = rest
	}
}

// quiet lets River's warnings through and drops its chatter.
func quiet(log *slog.Logger) *slog.Logger { return slog.New(levelFloor{log.Handler()}) }

type levelFloor struct{ slog.Handler }

// Enabled implements slog.Handler.
func (h levelFloor) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && h.Handler.Enabled(ctx, l)
}

// WithAttrs implements slog.Handler.
func (h levelFloor) WithAttrs(a []slog.Attr) slog.Handler { return levelFloor{h.Handler.WithAttrs(a)} }

// WithGroup implements slog.Handler.
func (h levelFloor) WithGroup(name string) slog.Handler { return levelFloor{h.Handler.WithGroup(name)} }
