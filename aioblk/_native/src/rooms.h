/*
 * The rooms of the request path, from the top floor down: a table of contents. Each source is a room. It calls those that
 * come after it here, and none before; what it does for others is listed under its name, and all else in it is its own.
 *
 * RUNS_PYTHON marks what may run Python code: by calling it, by letting go of an object, by taking memory for which the
 * collector may run, or by leaving the GIL to another thread. That code may do anything: cancel, submit, close, give the
 * device up, run the loop. So across such a call hold no part, no item and no place in a list; only the queue, or a request
 * that you own. What waits, or is to be ended, hangs on the queue meanwhile, where giving up and recalling find it.
 */
#ifndef AIOBLK_ROOMS_H
#define AIOBLK_ROOMS_H

#include "core.h"

#define RUNS_PYTHON

/* ==== what Python calls: from arguments to a planned request ===================================================== */

/*
 * ---- module.c: the module, and its types in the order in which they need each other ----
 */

/*
 * ---- submitter.c: the request methods of Device and Queue ----
 *
 * Each checks where it is called and with what, before libblkio sees anything; has the request prepared; and submits it.
 */
extern PyTypeObject Submitter_Type;
RUNS_PYTHON int submitter_module_init(void);

/*
 * ---- moved.c: request methods with their offsets moved, for a slice of a device ----
 */
extern PyTypeObject Moved_Type;
/* (pairs, start, size): the tuple's pairs with their offsets moved; None: not all of them are known to lie within. */
RUNS_PYTHON PyObject *move_pairs(PyObject *module, PyObject *args);

/*
 * ---- content.c: zeroes in a buffer, and what two differ in ----
 */
/* (buffer, unit): [(start, end, whether they are zeroes), ...] of the whole buffer, told apart by units of so many bytes. */
RUNS_PYTHON PyObject *zero_runs(PyObject *module, PyObject *args);
/* (one, other, unit): [(start, end), ...], units of so many bytes, as far as both go. */
RUNS_PYTHON PyObject *differing_runs(PyObject *module, PyObject *args);

/*
 * ---- virtqueue_object.c: a virtqueue, the memory of its guest, and what it is asked for, as the Python side has them ----
 */
extern PyTypeObject GuestMemory_Type, GuestRequest_Type, Virtqueue_Type;

/*
 * ---- batch.c: many transfers with one awaitable ----
 *
 * Every item is checked and planned before the first is submitted. From there on a batch is a request with many parts.
 */
/* `bytes`: the items say how long they are, and what is read goes into bytes. */
RUNS_PYTHON Request *prepare_batch(QueueCore *q, Operation op, bool bytes, PyObject *items, uint32_t flags,
                                   bool return_exceptions);

/*
 * ---- prepare.c: refuses what is wrong, and makes a planned request of the rest ----
 *
 * What the caller wants is checked, the memory pinned, and the parts planned; nothing is submitted yet.
 */
RUNS_PYTHON Request *prepare_read(QueueCore *q, uint64_t offset, uint64_t length);
RUNS_PYTHON Request *prepare_buffer(QueueCore *q, Operation op, uint64_t offset, PyObject *buffer, uint32_t flags);
RUNS_PYTHON Request *prepare_buffers(QueueCore *q, Operation op, uint64_t offset, PyObject *buffers, uint32_t flags);
RUNS_PYTHON Request *prepare_range(QueueCore *q, Operation op, uint64_t offset, uint64_t length, uint32_t flags);
RUNS_PYTHON Request *prepare_command(QueueCore *q, Operation op, uint64_t offset);
/* The same for one item of a request, whose offset is given. 0, or -1 with an exception set. */
RUNS_PYTHON int plan_item_read(QueueCore *q, Request *r, Item *item, uint64_t length);
RUNS_PYTHON int plan_item_buffer(QueueCore *q, Request *r, Item *item, PyObject *buffer);

/*
 * ---- plan.c: cuts memory and lengths into parts that the device accepts ----
 */
/* Both add the parts of an item. 0, or -1 with an exception set. */
RUNS_PYTHON int plan_memory(Request *r, Item *item, DeviceCore *device, const struct iovec *memory, size_t count);
RUNS_PYTHON int plan_range(Request *r, DeviceCore *device, uint64_t maximum);

/*
 * ---- arguments.c: what a method was called with, by position or by name ----
 */
RUNS_PYTHON int arguments_module_init(void);
/* values[i] becomes the argument for parameters[i], borrowed, or NULL. */
RUNS_PYTHON int parse(const Signature *signature, PyObject *const *args, Py_ssize_t count, PyObject *names,
                      PyObject **values);
/* A byte offset or length: a non-negative int. */
RUNS_PYTHON int parse_offset(DeviceCore *device, Operation op, PyObject *object, uint64_t *offset);
RUNS_PYTHON int parse_range(DeviceCore *device, Operation op, PyObject *const objects[2], uint64_t *offset,
                            uint64_t *length);
RUNS_PYTHON int parse_flag(PyObject *object, uint32_t flag, uint32_t *flags);

/* ==== the queue: a request on its way ============================================================================= */

/*
 * ---- queue_core.c: the queue as the Python side has it ----
 *
 * Its methods are those of the rooms below, and what the bounce pool asks of them.
 */
extern PyTypeObject QueueCore_Type;
RUNS_PYTHON int queue_module_init(void);

/*
 * ---- turns.c: the entrances from the loop, and for a thread that has none ----
 */
RUNS_PYTHON PyObject *queue_flush(QueueCore *q, PyObject *ignored);
RUNS_PYTHON PyObject *queue_on_event(QueueCore *q, PyObject *ignored);
RUNS_PYTHON PyObject *queue_wait(QueueCore *q, PyObject *args);

/*
 * ---- submission.c: takes a planned request into the queue ----
 *
 * Alone, when nothing else is going on: then it may be done before the call returns. Otherwise with this turn's others.
 * What cannot be admitted has failed, and is over in the next turn: nothing is let go of here.
 */
RUNS_PYTHON int queue_submit(QueueCore *q, Request *r);
/* Work outside libblkio, done by the Python side on a thread of its own: it ends with complete(). */
RUNS_PYTHON int queue_submit_external(QueueCore *q, Request *r, PyObject *hook);

/*
 * ---- spin.c: looks again instead of sleeping, where that pays ----
 */
/* Nothing has come of what the device has; returns how many completions have now. */
RUNS_PYTHON int queue_spin(QueueCore *q);
void queue_spin_has_paid(QueueCore *q); /* what was looked for has come, this way or by an event */

/*
 * ---- reap.c: calls do_io, and takes what has completed ----
 */
extern bool queues_in_several_threads; /* have been bound, since the process began */
/* Submits what was issued and takes what has completed; returns how many completions. */
RUNS_PYTHON int queue_reap(QueueCore *q);
/* Blocks, without the GIL, until at least one part has completed or timeout_ns have passed; with 0 it only looks. */
RUNS_PYTHON int queue_reap_blocking(QueueCore *q, uint64_t timeout_ns);
void queue_reset_event(QueueCore *q); /* read the eventfd; do_io must follow, unless libblkio has nothing left */

/*
 * ---- awaitable.c: what asyncio sees of a request ----
 *
 * The methods of a future and of a coroutine, cancelling and awaiting. It fills them into the types; nobody calls it.
 */
RUNS_PYTHON int awaitable_module_init(void);

/*
 * ---- forms.c: the other faces of a request ----
 *
 * For asyncio's tests for a coroutine, for who drives an awaitable by hand, and for who has forgotten to await.
 */
RUNS_PYTHON Py_hash_t request_hash(PyObject *request);
RUNS_PYTHON PyObject *request_await(PyObject *request, PyObject *ignored);
extern PySequenceMethods request_as_sequence;
extern PyMappingMethods request_as_mapping;
RUNS_PYTHON int forms_module_init(void);

/*
 * ---- loss.c: gives up what a lost device has, or keeps it for another one ----
 *
 * But for the age of a request, nothing of it touches the path of one. docs/loss.md tells the whole story.
 */
/* Nothing is taken from libblkio any more, and nothing given to it, until the queue goes on with another blkioq. */
void queue_set_blkioq(QueueCore *q, struct blkioq *blkioq, size_t depth);
/* In the queue's own thread: 1 when another one had found the device lost, -1 with an exception. */
RUNS_PYTHON bool queue_abandon_if_told(QueueCore *q);
RUNS_PYTHON PyObject *queue_abandon(QueueCore *q, PyObject *exception);
PyObject *queue_abandon_bounce(QueueCore *q, PyObject *ignored);
RUNS_PYTHON PyObject *queue_grow_older(QueueCore *q, PyObject *ignored);
PyObject *queue_suspend(QueueCore *q, PyObject *ignored);
RUNS_PYTHON PyObject *queue_recall(QueueCore *q, PyObject *ignored);
RUNS_PYTHON PyObject *queue_resume(QueueCore *q, PyObject *args);

/*
 * ---- held.c: lets wait what must not overtake a change that was given up ----
 *
 * A newcomer that meets one is linked and not admitted, and goes on when nothing of what it meets is left, or it is cancelled.
 */
/* Keeps a request that is about to be submitted, if it meets what was given up. */
bool given_up_keeps(QueueCore *q, Request *r);
/* Lets those go on that may, if there is anything new. */
RUNS_PYTHON void given_up_release(QueueCore *q);
RUNS_PYTHON void given_up_drop_held(QueueCore *q);
/* Has the hook do a request outside libblkio. 0, or -1 with its exception. */
RUNS_PYTHON int queue_call_external(Request *r, PyObject *hook);

/*
 * ---- parts.c: admits parts, issues them to libblkio, keeps the backlog, takes them as done ----
 *
 * A part is admitted when it has the bounce memory that it needs, and issued when libblkio has it. In between it is in the
 * backlog, for as long as the device has enough to do. Parts that nobody wants any more go there as well, from wherever they
 * wait, and are ended when the backlog is issued next: so neither failing nor cancelling lets go of anything.
 */
/* Links the request and starts its parts; the caller flushes. -1: KeyboardInterrupt or the like, for the caller. */
RUNS_PYTHON int request_start(QueueCore *q, Request *r);
/* The same for one that is linked. */
RUNS_PYTHON int request_admit(QueueCore *q, Request *r);
/* The request's parts in order, as far as there is room. False: some are left. */
bool queue_admit_parts(QueueCore *q, Request *r);
/*
 * What has not been admitted goes to the backlog as it is, to be ended there: it is not wanted any more, or fails now, with
 * the exception or else with the errno.
 */
void request_drop_unadmitted(Request *r);
void request_fail_unadmitted(Request *r, int error, const char *message, PyObject *exception);
bool queue_has_room(const QueueCore *q, const Part *part); /* in the ring: if not, an event tells when there is */
void queue_issue(QueueCore *q, Part *part);
RUNS_PYTHON void queue_issue_backlog(QueueCore *q);
RUNS_PYTHON void queue_part_done(QueueCore *q, Part *part, int ret, const char *message);
RUNS_PYTHON void queue_merged_done(QueueCore *q, Part *part, int ret, const char *message); /* of one that carries others */
/* False: it is over already. The next turn ends what of it the device does not have. */
RUNS_PYTHON bool request_cancel_io(Request *r, PyObject *message);

/*
 * ---- waking.c: runs or schedules what waits for a request ----
 *
 * Who waits for requests whose outcome is known: directly where the loop has called us, through call_soon else.
 */
/* KICK_WANTED: not all, since what they have submitted is to be handed over first; only directly. */
RUNS_PYTHON int queue_wake_ready(QueueCore *q, bool direct);
#define KICK_WANTED 1
/* For who may be a task: where that was woken from below, the rest is woken when it pauses, unless it may run the loop. */
RUNS_PYTHON int queue_wake_others(QueueCore *q);
/* The same where nothing of it concerns the caller. */
RUNS_PYTHON void queue_wake_others_quietly(QueueCore *q);
/* Has the loop run a step of the task whose wake-up the callback is. False: it is none, or the loop did not take it. */
RUNS_PYTHON bool waking_rouse(Request *r, PyObject *callback, PyObject *context);
PyObject *waking_task_type(void); /* asyncio.Task, borrowed */
RUNS_PYTHON int waking_module_init(void);

/* ==== what a request comes to, and what it is made of ============================================================== */

/*
 * ---- outcome.c: settles requests, their items and batches, and tells who is to know ----
 */
/* The last part has completed. */
RUNS_PYTHON void queue_outcome(Request *r);
/* The outcome becomes visible; who waits is put on the queue's ready list. */
RUNS_PYTHON void request_settle(Request *r, State state);
/* All parts have completed: the first error, or the list of what the items gave. */
RUNS_PYTHON void batch_settle(Request *batch);
RUNS_PYTHON void queue_tell_if_idle(QueueCore *q);
/* Calls the hooks that could not be called before. */
RUNS_PYTHON void queue_tell_untold(QueueCore *q);

/*
 * ---- sight.c: what is known of requests beyond their outcome: how long they took, and who is told of each ----
 *
 * Nothing of it is called for a request while nobody wants to know.
 */
/* It is about to be submitted. False: and is not to be any more. */
RUNS_PYTHON bool sight_begin(QueueCore *q, Request *r);
RUNS_PYTHON void sight_end(Request *r, uint64_t since); /* of one that has begun: it is settled */
RUNS_PYTHON void sight_refuse(Request *r);              /* of any: it is refused after all, with the exception that is set */
void sight_hand_over(QueueCore *q);                     /* what is new goes to the device now */
void sight_hand_over_now(QueueCore *q, Request *r);     /* or to whoever does it outside libblkio */
void sight_do_not_time(QueueCore *q, Request *r);       /* from now on */
RUNS_PYTHON PyObject *sight_watch(QueueCore *q, PyObject *args);
RUNS_PYTHON PyObject *sight_operations(QueueCore *q, PyObject *ignored);

/*
 * ---- failure.c: the exceptions that items failed with, and how many there were ----
 */
/* The exception that an item failed with: a new reference, or NULL with another one set. */
RUNS_PYTHON PyObject *item_exception(Request *r, Item *item);
/* An exception that is an outcome has to be had now: what `make` makes, or the error in making it. A new reference. */
RUNS_PYTHON PyObject *make_certainly(PyObject *(*make)(Request *, Item *), Request *r, Item *item, int error);
RUNS_PYTHON void queue_count_failure(QueueCore *q, Operation op, const Item *item);

/*
 * ---- record.c: a request's memory: made, kept for reuse, what it holds and how that is dropped ----
 *
 * The types begin here, with their slots for memory.
 */
extern PyTypeObject Request_Type, Future_Type;
RUNS_PYTHON Request *request_new(QueueCore *queue, Operation op, uint64_t offset, uint64_t length);
void request_publish(Request *r); /* Python code is about to see it, and with it the garbage collector */
/* Borrowed, or NULL with TypeError. */
RUNS_PYTHON Request *queue_own_request(QueueCore *q, PyObject *object);
/* Forgets the plan from a part on: regions, vectors and bounce memory. The device must be through with these parts. */
RUNS_PYTHON void request_drop_parts(Request *r, uint32_t first);
RUNS_PYTHON void batch_drop_items(Request *batch);
RUNS_PYTHON void request_drop_first_callback(Request *r);
void request_forget_inline(Request *r); /* as the queue's latest inline completion */
/* Drops the request beside the exception that is on its way: NULL. */
RUNS_PYTHON Request *request_discard(Request *r);
void request_free_kept(QueueCore *queue); /* what it has kept for reuse */

/*
 * ---- device_core.c: limits and mapped regions, shared by the queues of a device ----
 *
 * The exceptions that the Python side makes are asked for here, too.
 */
extern PyTypeObject DeviceCore_Type;
extern const char *const operation_names[OP_COUNT];
/* The region that holds `address`, or NULL. *available is how far, within length, the answer holds. */
Region *device_find_region(DeviceCore *device, const char *address, uint64_t length, uint64_t *available);
RUNS_PYTHON void device_leave_region(QueueCore *q, Region *region);
/* Tells once more of retired regions that nobody uses. False: to be done again later. */
RUNS_PYTHON bool device_tell_idle_regions(QueueCore *q);
void device_add_queue(DeviceCore *device, QueueCore *queue);
void device_remove_queue(DeviceCore *device, QueueCore *queue);
/* A flush is done: it has covered so many changes. */
void device_note_flush(DeviceCore *device, uint64_t covered);
/* From the device's factories: new references, or NULL with another set. Offset and length may be UINT64_MAX: none. */
RUNS_PYTHON PyObject *device_make_refusal(DeviceCore *device, const char *reason, Operation op, uint64_t offset,
                                          uint64_t length);
RUNS_PYTHON PyObject *device_make_error(DeviceCore *device, Operation op, int error, const char *message,
                                        uint64_t offset, uint64_t length);
/* Raises it; returns -1. */
RUNS_PYTHON int device_refuse(DeviceCore *device, const char *reason, Operation op, uint64_t offset, uint64_t length);
/* For integers that no uint64_t holds; either may be None. */
RUNS_PYTHON int device_refuse_range(DeviceCore *device, Operation op, PyObject *offset, PyObject *length);

/*
 * ---- given_up.c: changes that were given up, and may land all the same ----
 *
 * Their ranges hang on the device; who meets one is held by its queue until it is over.
 */
/* The changes that are in flight and were not given up, as (from, to, request): a list with one for each item of a batch. */
RUNS_PYTHON PyObject *queue_changes(QueueCore *q);
/* Whether the request, once cancelled, may change data all the same, while nobody waits for it. */
bool given_up_can_be(const Request *r);
/* What comes after waits for it, until given_up_end(). False: there is no memory to note it down. */
bool given_up_begin(Request *r);
RUNS_PYTHON void given_up_end(Request *r);
/* Whether the request meets any of them. Under the device's lock. */
bool given_up_meets(const GivenUp *given_up, Request *r);
/* Tells those that hold requests to look at them again; the queue does so once more, should they not come to know. */
RUNS_PYTHON void given_up_tell(QueueCore *q);
/*
 * The device is lost with it, and may do it yet: other queues hold what they hold until they are told of the loss
 * themselves. That is forgotten when the device comes back.
 */
void given_up_leave(Request *r);
void given_up_forget(DeviceCore *device);

/*
 * ---- pins.c: holds the caller's memory still ----
 */
RUNS_PYTHON int pin_acquire(Py_buffer *pin, PyObject *object, bool writable);
RUNS_PYTHON void pin_release(Py_buffer *pin);
RUNS_PYTHON void request_drop_pins(Request *r);

/*
 * ---- view.c: a part of memory, with the buffer protocol ----
 */
extern PyTypeObject View_Type;
/* Of a range within the memory. */
RUNS_PYTHON PyObject *view_make(MemoryObject *memory, char *address, size_t length);

/*
 * ---- memory.c: memory that is handed out in views, and not released before nothing uses it any more ----
 */
extern PyTypeObject Memory_Type;
/* Keeps the memory until the matching memory_unuse; the caller keeps the object. False: it is closed. */
RUNS_PYTHON bool memory_use(MemoryObject *memory);
/* Undoes memory_use. May run on_release. Keeps the current exception; raises nothing. */
RUNS_PYTHON void memory_unuse(MemoryObject *memory);

/*
 * ---- allocator_object.c: the allocator as the Python side has it ----
 */
extern PyTypeObject Allocator_Type;

/* ==== the ground =================================================================================================== */

/*
 * ---- loop.c: the turns that a queue asks of its event loop, and the exceptions that are for it ----
 *
 * It knows no requests. How hooks are called, from where nothing can be raised, is here as well.
 */
/* The current exception as an object, normalised: a new reference. It is no longer set. */
RUNS_PYTHON PyObject *take_exception(void);
/* For what is no error, if no queue is at hand. */
RUNS_PYTHON void raise_in_main_thread(void);
RUNS_PYTHON int queue_call_soon(QueueCore *q, PyObject *callback, PyObject *argument, PyObject *context);
RUNS_PYTHON int queue_schedule_flush(QueueCore *q);
/* Schedules a flush, whatever happens. Without a loop, nothing: wait() looks by itself. */
RUNS_PYTHON void queue_go_on_next_turn(QueueCore *q);
/* The same two for what the end of this turn can do as well: see turns.c. */
RUNS_PYTHON int queue_schedule_flush_soon(QueueCore *q);
RUNS_PYTHON void queue_go_on_soon(QueueCore *q);
RUNS_PYTHON void queue_pay_flush(QueueCore *q); /* by way of the loop: somebody may be running it before this turn ends */
/* A hook (UNTOLD_*) could not be called: it will be in the next turn. */
RUNS_PYTHON void queue_tell_later(QueueCore *q, uint8_t hook);
RUNS_PYTHON bool loop_may_nest(void); /* a task may run the loop that runs it, or another one */
RUNS_PYTHON bool loop_has_others(QueueCore *q); /* other callbacks are ready; false also where it does not say */
RUNS_PYTHON bool loop_says_it_runs(QueueCore *q); /* here; false: it is to be found out otherwise */
void queue_new_turn(QueueCore *q); /* others have had their turn: inline completions are harmless again */
/* The current exception is for the loop, which raises it in its next turn; without a loop, wait() does. */
RUNS_PYTHON void queue_put_off(QueueCore *q);
/* Raises what was put off: 0, or -1. */
RUNS_PYTHON int queue_raise_put_off(QueueCore *q);
/*
 * For an exception that cannot be raised here. KeyboardInterrupt, SystemExit and their like are not errors: they are put
 * off until the loop can raise them. An error is reported, with `where`, but for a want of memory: true: try again later.
 */
RUNS_PYTHON bool put_off_exception(QueueCore *q, PyObject *where);
/* Calls a hook, which may be NULL or None, with one argument or none. False: it is to be called again later. */
RUNS_PYTHON bool call_hook(QueueCore *q, PyObject *hook, PyObject *argument);
/* A bound method that returns the loop, and a future that is done and asyncio's own: see step_task. */
RUNS_PYTHON PyObject *loop_getter(PyObject *loop);
RUNS_PYTHON PyObject *loop_finished_future(PyObject *loop);
RUNS_PYTHON int loop_module_init(void);

/*
 * ---- bounce.c: bounce memory of a part, and the copies ----
 */
/* What the device is given: bounce memory for a part that needs it. False: there is no room now. */
bool queue_prepare_part(QueueCore *q, Part *part);
void bounce_copy_to_caller(QueueCore *q, const Part *part);
void bounce_give_back(QueueCore *q, Part *part);

/*
 * ---- zeroes.c: zeroes that are written, where the device does not make them ----
 */
RUNS_PYTHON int zeroes_module_init(void);
/* The part is to be written, instead of asking the device for zeroes. */
void zeroes_plan_part(Part *part);
/* The last bytes of a range of zeroes, that must be written so that the file grows as far; 0: none. */
uint64_t zeroes_beyond_the_end(DeviceCore *device, const Request *r);
/* How many bytes the next piece of such a part has; 0: it is none. */
uint64_t zeroes_at_once(const Part *part);
/* A piece has been written. True: the part is shorter by it, and to be issued once more. */
bool zeroes_go_on(Part *part);
/* A request is over and unlinked. True: not supported, it begins again, with zeroes that are written. */
bool zeroes_instead(Request *r);

/*
 * ---- merge.c: what a batch transfers side by side, as one ----
 */
/* Of a batch that is planned, and not submitted. It does what it has memory for. */
void merge_adjacent(Request *batch);
/* The part is itself again, and so are its riders: how many there were. The device must be through with it. */
uint32_t merge_undo(Part *part);

/*
 * ---- lists.c: what hangs on a queue: in flight, backlog, dropped, held, ready ----
 *
 * Pointers only. What is taken comes off its list.
 */
void queue_link(QueueCore *q, Request *r);
void queue_unlink(QueueCore *q, Request *r);
void queue_append_backlog(QueueCore *q, Part *part);
void queue_take_backlog(QueueCore *q);
void queue_sort_backlog(QueueCore *q);  /* parts that nobody wants any more are dropped */
Part *queue_take_dropped(QueueCore *q); /* or NULL */
/* Of what the device had or was to get, nothing is left to do: the requests in flight are all that there is. */
void queue_forget_parts(QueueCore *q);
void queue_hold(QueueCore *q, Request *r);
Request *queue_take_held(QueueCore *q); /* a new reference, or NULL */
void queue_ready(QueueCore *q, Request *r);
Request *queue_take_ready(QueueCore *q); /* a new reference, or NULL */
void queue_put_back_ready(QueueCore *q, Request *r);

/*
 * ---- pace.c: learns whether parts are handed to the device in the middle of a turn ----
 */
void pace_begin(Pace *pace);
void pace_settle(Pace *pace, bool pays); /* as if it had been learnt, and for long */
void pace_note_flush(QueueCore *q, uint32_t parts);
void pace_count(Pace *pace, int requests); /* that have been woken, or taken as done by who has submitted them */
bool pace_wants_kick(const QueueCore *q);

/*
 * ---- clock.c: the time ----
 */
uint64_t clock_now_ns(void);
RUNS_PYTHON void clock_doze(uint64_t nanoseconds);

/*
 * ---- allocator.c: a good-fit allocator, which knows nothing of the others ----
 *
 * allocator.h lists what it does.
 */

/*
 * ---- virtio_blk.c: what a chain of descriptors asks of a disk ----
 *
 * virtio_blk.h lists what it does.
 */

/*
 * ---- virtqueue.c: a split virtqueue as its device sees it, which knows nothing of requests ----
 *
 * virtqueue.h lists what it does.
 */

#endif
