package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/compute/cgroup"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/sdk"
)

// The limits of an endpoint that asks for none.
const (
	defaultCU    = 0.25
	defaultMaxCU = 2
)

// machineCU is a size that limits nothing here: what is compared with a server without Bough must have all of the machine.
func machineCU() float64 { return float64(runtime.NumCPU()) }

// resize gives an endpoint the limits lo to hi, awake or not.
func (b *bench) resize(ctx context.Context, t *target, lo, hi float64) error {
	low, high := api.ComputeUnits(lo), api.ComputeUnits(hi)
	out, err := b.client.UpdateEndpoint(ctx, t.project, t.endpoint, sdk.EndpointUpdate{AutoscalingLimitMinCU: &low, AutoscalingLimitMaxCU: &high})
	if err != nil {
		return err
	}
	_, err = b.client.WaitForOperations(ctx, out.Operations, nil)
	return err
}

// autoscale: how soon a load makes a compute larger, and what looking after many costs.
func (b *bench) autoscale(ctx context.Context) ([]row, error) {
	felt, err := b.scaleUp(ctx)
	if err != nil {
		return nil, err
	}
	rows := []row{{"load begins → the compute is larger", felt.String(), "", "", "–", "≤ 10 s"}}
	cost, err := lookCost(ctx, b.awake)
	if err != nil {
		return nil, err
	}
	return append(rows, cost), nil
}

// scaleUp measures from the first busy statement until the endpoint's size has grown.
func (b *bench) scaleUp(ctx context.Context) (series, error) {
	var felt series
	for range min(5, b.rounds) {
		t, err := b.create(ctx)
		if err != nil {
			return nil, err
		}
		if err := b.resize(ctx, t, defaultCU, machineCU()); err != nil {
			return nil, err
		}
		d, err := b.scaleUpOnce(ctx, t)
		if err != nil {
			return nil, err
		}
		felt = append(felt, d)
		if _, err := b.client.DeleteProject(ctx, t.project); err != nil {
			return nil, err
		}
	}
	return felt, nil
}

func (b *bench) scaleUpOnce(ctx context.Context, t *target) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	busy := make(chan error, runtime.NumCPU())
	defer func() {
		cancel()
		for range runtime.NumCPU() {
			<-busy //nolint:errcheck // the end of ctx; what else went wrong shows in the size
		}
	}()
	for range runtime.NumCPU() {
		go func() {
			conn, err := pgx.Connect(ctx, "host="+b.socket(t)+" user="+postgres.DefaultOwner+" dbname="+postgres.DefaultDatabase)
			if err == nil {
				_, err = conn.Exec(ctx, "DO $$ BEGIN LOOP END LOOP; END $$") // ends with ctx
				conn.Close(context.WithoutCancel(ctx))
			}
			busy <- err
		}()
	}
	began := time.Now()
	for {
		e, err := b.client.Endpoint(ctx, t.project, t.endpoint)
		if err != nil {
			return 0, err
		}
		if e.Runtime == nil || e.Runtime.SizeCU == nil {
			return 0, errors.New("the endpoint shows no size")
		}
		if note := e.Runtime.SizeNote; note != nil {
			return 0, errors.New(*note)
		}
		if *e.Runtime.SizeCU > defaultCU {
			return time.Since(began), nil
		}
		select {
		case <-ctx.Done():
			return 0, errors.New("a minute of load does not make the compute larger")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// lookCost measures the looks of autoscaling at n groups, each with a process, as part of a processor.
func lookCost(ctx context.Context, n int) (_ row, err error) {
	const every = time.Second
	name := "bench-" + strconv.Itoa(os.Getpid())
	tree, err := cgroup.Open(name)
	if err != nil {
		return row{}, err
	}
	var asleep []*exec.Cmd
	defer func() {
		for _, cmd := range asleep {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		err = errors.Join(err, cgroup.Clean(context.WithoutCancel(ctx), name))
	}()
	var groups []*cgroup.Group
	for i := range n {
		g := tree.Group("ep-" + strconv.Itoa(i))
		if err := errors.Join(g.Make(1), g.SetCPU(defaultCU, defaultCU), g.SetMemory(1<<30, 0)); err != nil {
			return row{}, err
		}
		cmd := exec.Command("sleep", "3600")
		if err := g.Start(cmd); err != nil {
			return row{}, err
		}
		groups, asleep = append(groups, g), append(asleep, cmd)
	}
	const looks = 50
	before := cpuTime()
	for range looks {
		for _, g := range groups {
			if _, err := g.Usage(); err != nil {
				return row{}, err
			}
		}
	}
	each := (cpuTime() - before) / looks
	return row{fmt.Sprintf("autoscaling %d awake computes", n), fmt.Sprintf("%.3f %% of a core", 100*each.Seconds()/every.Seconds()),
		ms(each), "CPU for a look at all, every second", "–", "< 1 %"}, nil
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
